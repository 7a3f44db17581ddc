//! A node's start from a checkpoint on a CPU: a random Llama of 1.24 B parameters, read from the page cache, as it is and quantized at
//! load. How long until the node takes requests, and the most memory that its process ever held, the mapped file counted in.
//! By hand: `BENCH_ONLY=start`; needs 6 GB of memory and 2.5 GB of disk.

use std::path::Path;

use inferno_node::bridge::ffi::{self, DeviceOptions, Isa};
use inferno_node::checkpoint::{Checkpoint, LoadFormat, Quantization};

use super::line;
use super::node::Node;
use super::step::limits;

const SHAPE: &str = "llama-3.2-1b";
const MAX_SEQ_LEN: u32 = 256;
const STARTS: usize = 3;

/// What is to be reached, seconds, as it is stored; quantizing has none.
const READY: &str = "3";
/// Of the weights, as they are held.
const MOST: &str = "1.15";

pub fn measure() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let made = Node::command()
        .args(["models", "random", "--like", SHAPE, "--force"])
        .arg(folder.path())
        .status();
    assert!(made.is_ok_and(|status| status.success()), "models random");
    println!("\n{SHAPE} from the page cache on cpu:0");
    println!(
        "| held in | weights | ready after | memory of the process when ready | the most before | of the weights |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    let (fp8, int8, int4) = (Quantization::Fp8, Quantization::Int8, Quantization::Int4);
    for (name, quantization) in
        [("bf16", None), ("fp8", Some(fp8)), ("int8", Some(int8)), ("int4", Some(int4))]
    {
        let weights = weight_bytes(folder.path(), quantization) as f64;
        let (mut seconds, mut held, mut most) = (Vec::new(), 0, 0);
        for _ in 0..STARTS {
            let node = start(folder.path(), quantization.map(|_| name));
            seconds.push(node.ready_after().as_secs_f64());
            let [now, at_most] = node.memory();
            (held, most) = (held.max(now), most.max(at_most));
            node.stop();
        }
        let share = most as f64 / weights;
        let each: Vec<_> = seconds.iter().map(|seconds| format!("{seconds:.1}")).collect();
        println!(
            "| {name} | {:.2} GB | {} s | {:.2} GB | {:.2} GB | {share:.2} |",
            weights / 1e9,
            each.join(", "),
            held as f64 / 1e9,
            most as f64 / 1e9
        );
        let shortest = seconds.into_iter().fold(f64::INFINITY, f64::min);
        line(
            &format!("serving/start/{name}"),
            format!("{shortest:.1}"),
            "s",
            if quantization.is_none() { READY } else { "" }.into(),
        );
        line(
            &format!("serving/start/{name}/memory"),
            format!("{share:.2}"),
            "of the weights",
            MOST.into(),
        );
    }
}

fn start(folder: &Path, quantization: Option<&str>) -> Node {
    let quantization =
        quantization.map_or(String::new(), |name| format!("quantization = {name:?}\n"));
    Node::start_model(
        &format!("model_path = {folder:?}\nmax_seq_len = {MAX_SEQ_LEN}\n{quantization}"),
        "[executor]\ndevices = [\"cpu:0\"]\n[batcher]\nmax_batch_size = 32\n",
    )
}

/// As the engine holds them.
fn weight_bytes(folder: &Path, quantization: Option<Quantization>) -> u64 {
    let mut checkpoint = Checkpoint::open(folder, LoadFormat::Safetensors).expect("just written");
    checkpoint.quantize(quantization, None).expect("of 16 bits");
    let spec = checkpoint.decoder().spec_for(MAX_SEQ_LEN);
    let options = DeviceOptions::cpu(1, Isa::Auto, 0);
    let need = ffi::required_bytes(&options, &spec, &limits(&spec, 32, MAX_SEQ_LEN));
    need.expect("a good spec").weight_bytes
}
