//! The safetensors files, by as many threads as there are cores: each makes a chunk in a buffer of its own and writes it to its
//! place. Threads begin at different files, because the system lets only one write to a file at a time.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::layout::{Placed, Shard};
use super::meter::Meter;
use super::normal::{NormalTable, fill_bytes, tensor_key};
use super::packing::TensorBytes;
use super::{DEVIATION, RandomError};

/// What a thread makes and writes at once: large beside the cost of a call, small beside the cache. A multiple of a word's bytes.
const CHUNK_BYTES: u64 = 1 << 20;

/// All weights of one checkpoint.
pub(super) struct WriteJob<'a> {
    /// Where the files are to be.
    pub folder: &'a Path,
    pub shards: &'a [Shard],
    pub seed: u64,
    pub stop: &'a AtomicBool,
    pub meter: &'a Meter,
}

/// One file being written.
struct ShardFile<'a> {
    shard: &'a Shard,
    file: File,
    chunks: Vec<Chunk<'a>>,
    next: AtomicUsize,
}

/// Part of a tensor.
struct Chunk<'a> {
    tensor: &'a Placed,
    /// In bytes of the tensor.
    begin: u64,
    bytes: u64,
}

impl WriteJob<'_> {
    /// Writes every file.
    ///
    /// # Errors
    /// The first that a thread met; all of them end then.
    pub(super) fn run(&self) -> Result<(), RandomError> {
        let table = NormalTable::new(DEVIATION);
        let outputs = self.shards.iter().map(|s| self.open(s)).collect::<Result<Vec<_>, _>>()?;
        let failed = AtomicBool::new(false);
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..num_threads)
                .map(|thread| {
                    let (table, outputs, failed) = (&table, &outputs, &failed);
                    scope.spawn(move || {
                        let outcome = self.work(table, outputs, thread, failed);
                        if outcome.is_err() {
                            failed.store(true, Ordering::Relaxed);
                        }
                        outcome
                    })
                })
                .collect();
            // A panic in one of them is a defect, and goes on here.
            let outcomes = threads.into_iter().map(|thread| match thread.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            outcomes.collect::<Vec<_>>().into_iter().collect()
        })
    }

    fn open<'a>(&self, shard: &'a Shard) -> Result<ShardFile<'a>, RandomError> {
        let path = self.folder.join(&shard.file);
        let file = File::create_new(&path).map_err(RandomError::io(&path))?;
        file.set_len(shard.file_bytes()).map_err(RandomError::io(&path))?;
        file.write_all_at(&shard.header, 0).map_err(RandomError::io(&path))?;
        self.meter.add(shard.header.len() as u64);
        let chunks = shard.tensors.iter().flat_map(chunks_of).collect();
        Ok(ShardFile { shard, file, chunks, next: AtomicUsize::new(0) })
    }

    /// One thread: its own file first, then wherever chunks are left.
    fn work(
        &self,
        table: &NormalTable,
        outputs: &[ShardFile<'_>],
        thread: usize,
        failed: &AtomicBool,
    ) -> Result<(), RandomError> {
        let mut buffer = vec![0; CHUNK_BYTES as usize];
        for index in 0..outputs.len() {
            let output = &outputs[(thread + index) % outputs.len()];
            while let Some(chunk) = output.take() {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(RandomError::Stopped);
                }
                if failed.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let bytes = &mut buffer[..chunk.bytes as usize];
                chunk.make(table, self.seed, bytes);
                output
                    .file
                    .write_all_at(bytes, output.place_of(chunk))
                    .map_err(RandomError::io(&self.folder.join(&output.shard.file)))?;
                self.meter.add(chunk.bytes);
            }
        }
        Ok(())
    }
}

impl<'a> ShardFile<'a> {
    fn take(&self) -> Option<&Chunk<'a>> {
        self.chunks.get(self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn place_of(&self, chunk: &Chunk<'_>) -> u64 {
        self.shard.header.len() as u64 + chunk.tensor.begin + chunk.begin
    }
}

fn chunks_of(tensor: &Placed) -> impl Iterator<Item = Chunk<'_>> {
    (0..tensor.bytes).step_by(CHUNK_BYTES as usize).map(move |begin| Chunk {
        tensor,
        begin,
        bytes: CHUNK_BYTES.min(tensor.bytes - begin),
    })
}

impl Chunk<'_> {
    fn make(&self, table: &NormalTable, seed: u64, out: &mut [u8]) {
        let key = tensor_key(seed, &self.tensor.name);
        self.tensor.content.make(self.begin, out, |out| match self.tensor.content {
            TensorBytes::Normal => table.fill(key, self.begin / 2, out),
            _ => fill_bytes(key, self.begin, out),
        });
    }
}
