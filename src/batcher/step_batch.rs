//! Rows of a step → the flat arrays of the border.

use std::sync::Arc;

use super::lane::{Lane, Row};
use crate::bridge::ffi::StepBatch;
use crate::bridge::{NO_MASK, NO_TOKEN};
use crate::executor::SeatBinding;

/// Fills a batch with the rows of a lane, keeping the memory of its arrays. A row's context length is the index of the token to
/// be sampled in the whole sequence, and with the seed the key of its random number: it does not depend on how the sequence was
/// batched, chunked, pre-empted or started again.
pub(super) fn fill<S: Clone>(batch: &mut StepBatch, lane: &Lane<S>, rows: &[Row]) {
    clear(batch);
    let seated =
        || rows.iter().filter_map(|row| Some((row, lane.seats[row.seat as usize].as_ref()?)));
    let stride = seated().map(|(_, run)| run.table.len()).max().unwrap_or(0);
    batch.block_table_stride = stride as u32;
    for (row, run) in seated() {
        let end = row.start + row.query_len;
        if row.feed_sampled {
            batch.token_ids.push(0);
        } else {
            let known = &run.sequence.token_ids[row.start as usize..end as usize];
            batch.token_ids.extend_from_slice(known);
        }
        batch.query_lens.push(row.query_len);
        batch.context_lens.push(end);
        batch.block_tables.extend_from_slice(&run.table);
        batch.block_tables.resize(batch.context_lens.len() * stride, 0);
        batch.seats.push(row.seat);
        batch.feed_sampled.push(row.feed_sampled);
        batch.sample.push(row.sample);
        batch.score.push(row.num_scored > 0);
        let next =
            run.sequence.token_ids.get(end as usize).filter(|_| row.num_scored == row.query_len);
        batch.next_token_ids.push(next.copied().unwrap_or(NO_TOKEN));
        batch.mask_rows.push(NO_MASK);
    }
}

/// Samplers of the sequences that were seated since the last call; they go with the next step.
pub(super) fn bindings<S: Clone>(lane: &mut Lane<S>) -> Vec<SeatBinding> {
    let binding = |seat| {
        let sequence = &lane.seats[seat as usize].as_ref()?.sequence;
        Some(SeatBinding {
            seat,
            sampler: Arc::clone(&sequence.sampler),
            num_prompt_tokens: sequence.num_prompt_tokens,
            token_ids: sequence.token_ids.clone(),
        })
    };
    lane.unbound.drain(..).filter_map(binding).collect()
}

fn clear(batch: &mut StepBatch) {
    batch.token_ids.clear();
    batch.query_lens.clear();
    batch.context_lens.clear();
    batch.block_tables.clear();
    batch.seats.clear();
    batch.feed_sampled.clear();
    batch.sample.clear();
    batch.score.clear();
    batch.next_token_ids.clear();
    batch.masks.clear();
    batch.mask_rows.clear();
}
