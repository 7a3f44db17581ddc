//! Rows of a step → the flat arrays of the border.

use super::lane::{Lane, Row};
use super::running::Running;
use crate::bridge::ffi::{SamplingRow, StepBatch};

/// Fills a batch with the rows of a lane, keeping the memory of its arrays.
pub(super) fn fill<S: Clone>(batch: &mut StepBatch, lane: &Lane<S>, rows: &[Row]) {
    clear(batch);
    let seated =
        || rows.iter().filter_map(|row| Some((row, lane.seats[row.seat as usize].as_ref()?)));
    let stride = seated().map(|(_, run)| run.table.len()).max().unwrap_or(0);
    batch.block_table_stride = stride as u32;
    batch.cu_query_lens.push(0);
    for (row, run) in seated() {
        let end = row.start + row.query_len;
        for position in row.start..end {
            let block = run.table[(position / lane.spec.block_size) as usize];
            batch.slot_mapping.push(block * lane.spec.block_size + position % lane.spec.block_size);
        }
        batch.positions.extend(row.start..end);
        if row.feed_sampled {
            batch.token_ids.push(0);
        } else {
            let known = &run.sequence.token_ids[row.start as usize..end as usize];
            batch.token_ids.extend_from_slice(known);
        }
        batch.cu_query_lens.push(batch.token_ids.len() as u32);
        batch.context_lens.push(end);
        batch.block_tables.extend_from_slice(&run.table);
        batch.block_tables.resize(batch.context_lens.len() * stride, 0);
        batch.seats.push(row.seat);
        batch.feed_sampled.push(row.feed_sampled);
        batch.sample.push(row.sample);
        batch.sampling.push(sampling_row(run, end));
    }
}

/// `position` is the index of the token to be sampled in the whole sequence, so that the random number does not depend on how
/// the sequence was batched, chunked, pre-empted or started again.
fn sampling_row<S>(run: &Running<S>, position: u32) -> SamplingRow {
    let sequence = &run.sequence;
    let sampling = &sequence.sampling;
    SamplingRow {
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        seed: sampling.seed,
        position,
        suppress_end: position.saturating_sub(sequence.num_prompt_tokens) < sequence.min_tokens,
    }
}

fn clear(batch: &mut StepBatch) {
    batch.token_ids.clear();
    batch.positions.clear();
    batch.slot_mapping.clear();
    batch.cu_query_lens.clear();
    batch.context_lens.clear();
    batch.block_tables.clear();
    batch.seats.clear();
    batch.feed_sampled.clear();
    batch.sample.clear();
    batch.sampling.clear();
}
