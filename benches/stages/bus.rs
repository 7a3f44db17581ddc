//! The bus's work for each message, without a connection: reading a request, joining and writing events.

use std::hint::black_box;

use bytes::BytesMut;
use criterion::{Criterion, Throughput};
use inferno_node::bus::{Encoding, decode, encode_event};
use inferno_node::ids::RequestId;
use inferno_node::request::{Event, merge};

fn event(seq: u32) -> Event {
    Event {
        seq,
        token_ids: vec![11_873],
        text: " example".to_owned(),
        ..Event::new(RequestId::parse("0199f2c84d2e7a31b0aa5d1c6f3e9b42").expect("an id"))
    }
}

pub fn encoding(c: &mut Criterion) {
    let mut group = c.benchmark_group("bus_encode_event");
    group.throughput(Throughput::Elements(1));
    let event = event(40);
    for (name, encoding) in [("json", Encoding::Json), ("msgpack", Encoding::Msgpack)] {
        let mut out = BytesMut::with_capacity(1 << 16);
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                encode_event(encoding, black_box(&event), &mut out);
            });
        });
    }
    group.finish();
}

pub fn decoding(c: &mut Criterion) {
    let mut group = c.benchmark_group("bus_decode_request");
    group.throughput(Throughput::Elements(1));
    let prompt = "sixty-four tokens of prompt, more or less ".repeat(6);
    let body = serde_json::json!({
        "request_id": "0199f2c84d2e7a31b0aa5d1c6f3e9b42", "prompt": prompt,
        "params": {"max_tokens": 64, "temperature": 0.7, "seed": 7}
    });
    let json = body.to_string().into_bytes();
    let packed = rmp_serde::to_vec_named(&body).expect("packs");
    for (name, encoding, body) in
        [("json", Encoding::Json, json), ("msgpack", Encoding::Msgpack, packed)]
    {
        group.bench_function(name, |b| b.iter(|| decode(encoding, black_box(&body))));
    }
    group.finish();
}

pub fn merging(c: &mut Criterion) {
    let mut group = c.benchmark_group("bus_merge_64_events");
    group.throughput(Throughput::Elements(64));
    group.bench_function("whole", |b| {
        b.iter(|| {
            let mut first = event(0);
            for seq in 1..64 {
                assert!(merge(&mut first, &mut event(seq)), "follows");
            }
            first
        });
    });
    group.finish();
}
