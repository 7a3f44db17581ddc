//! What holds for every checkpoint with golden values, by its name. `main.rs` asks it of Llama's, `families.rs` of every other family's.

use super::harness::{
    Engine, MAX_STEP_TOKENS, Query, blocks, devices_for, exact_devices, golden, ids,
    largest_difference, max_logit_error, positions, query, same_bits_devices,
};

/// At every position whose logits are stored: the first tokens in chunks, the rest one by one where the positions are neighbours.
pub fn logits_agree_with_transformers(name: &str) {
    let golden = golden(name);
    for device in devices_for(name) {
        let mut engine = Engine::new(name, device, 2);
        let mut worst = 0.0_f32;
        for prompt in &golden.prompts {
            let expected =
                &golden.logits[&format!("{}.logits", prompt["name"].as_str().expect("a name"))];
            let tokens = ids(&prompt["prompt_token_ids"]);
            let table = blocks(3, tokens.len());
            let mut first = 0;
            let rows = expected.chunks_exact(engine.vocab_size());
            for (position, expected) in positions(prompt, rows.len()).into_iter().zip(rows) {
                let logits = run_to(&mut engine, &tokens[..=position], first, &table);
                worst = worst.max(largest_difference(&logits, expected));
                first = position + 1;
            }
        }
        println!("{name} {device:?}: largest difference of a logit {worst:.2e}");
        assert!(worst <= max_logit_error(name, device), "{name} {device:?}: {worst}");
    }
}

/// The tokens from `first` in chunks as long as a step takes; the last one's logits.
fn run_to(engine: &mut Engine, tokens: &[u32], first: usize, table: &[u32]) -> Vec<f32> {
    let mut logits = Vec::new();
    let mut at = first;
    for chunk in tokens[first..].chunks(MAX_STEP_TOKENS as usize) {
        logits = engine.run(&[query(chunk, at as u32, table)]);
        at += chunk.len();
    }
    logits
}

/// All prompts at once, of different lengths; after the prefill the device feeds itself.
pub fn greedy_tokens_are_those_of_transformers(name: &str) {
    let golden = golden(name);
    let prompts: Vec<_> = golden.greedy_prompts().collect();
    let num_greedy = ids(&prompts[0]["greedy_token_ids"]).len();
    for device in exact_devices(name) {
        let mut engine = Engine::new(name, device, 2);
        let mut queries: Vec<Query> = Vec::new();
        for (seat, prompt) in prompts.iter().enumerate() {
            let tokens = ids(&prompt["prompt_token_ids"]);
            let table = blocks(seat as u32 * 16, tokens.len() + num_greedy);
            queries.push(Query { seat: seat as u32, ..query(&tokens, 0, &table) });
        }
        let mut completions = vec![Vec::new(); queries.len()];
        let mut logits = Vec::new();
        for _ in 0..num_greedy {
            logits = engine.run(&queries);
            for (query, (completion, &id)) in
                queries.iter_mut().zip(completions.iter_mut().zip(&engine.output.token_ids))
            {
                completion.push(id);
                query.first_position += query.token_ids.len() as u32;
                query.token_ids = vec![u32::MAX];
                query.feed_sampled = true;
            }
        }
        for (row, prompt) in prompts.iter().enumerate() {
            let label = prompt["name"].as_str().expect("a name");
            let expected = ids(&prompt["greedy_token_ids"]);
            assert_eq!(completions[row], expected, "{name} {device:?} {label}");
            let vocab = engine.vocab_size();
            let expected = &golden.logits[&format!("{label}.last_step_logits")];
            let worst = largest_difference(&logits[row * vocab..(row + 1) * vocab], expected);
            assert!(worst <= max_logit_error(name, device), "{name} {device:?} {label}: {worst}");
        }
    }
}

pub fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// A golden prompt of 150 tokens on each device that keeps bits the same, with its logits alone.
fn for_each_device(name: &str, test: impl Fn(&str, &mut Engine, &[u32], &[u32])) {
    let golden = golden(name);
    let prompt = golden.greedy_prompts().last().expect("prompts");
    let tokens = ids(&prompt["prompt_token_ids"]);
    for device in same_bits_devices(name) {
        let mut engine = Engine::new(name, device, 2);
        let alone = engine.run(&[query(&tokens, 0, &blocks(0, tokens.len()))]);
        test(&format!("{name} {device:?}"), &mut engine, &tokens, &bits(&alone));
    }
}

pub fn same_bits_in_any_batch(name: &str) {
    for_each_device(name, |label, engine, tokens, alone| {
        let vocab = engine.vocab_size();
        for place in 0..4_u32 {
            let others = [&tokens[..1], &tokens[..17], &tokens[40..100]];
            let mut queries: Vec<Query> = others.iter().map(|t| query(t, 0, &[])).collect();
            queries.insert(place as usize, query(tokens, 0, &[]));
            for (seat, query) in (0..).zip(&mut queries) {
                query.seat = seat;
                query.blocks = blocks(60 - 12 * seat, 150);
            }
            let logits = engine.run(&queries);
            let row = &logits[place as usize * vocab..(place as usize + 1) * vocab];
            assert_eq!(bits(row), alone, "{label} at place {place}");
        }
    });
}

pub fn same_bits_in_chunks_of_any_size(name: &str) {
    for_each_device(name, |label, engine, tokens, alone| {
        for size in [1, 3, 7, 16, 31, 64, 149] {
            let table: Vec<u32> = (0..10).map(|i| (i * 7 + 5) % 31).collect();
            let mut logits = Vec::new();
            let mut first = 0;
            for chunk in tokens.chunks(size) {
                logits = engine.run(&[query(chunk, first, &table)]);
                first += chunk.len() as u32;
            }
            assert_eq!(bits(&logits), alone, "{label} in chunks of {size}");
        }
    });
}

pub fn same_bits_over_blocks_that_another_sequence_filled(name: &str) {
    for_each_device(name, |label, engine, tokens, alone| {
        let vocab = engine.vocab_size();
        // 96 tokens are six whole blocks; two sequences go on from them at once, beside a stranger.
        let shared = blocks(20, 96);
        engine.run(&[Query { sample: false, ..query(&tokens[..96], 0, &shared) }]);
        let with_tail = |first: u32| [shared.clone(), blocks(first, 54)].concat();
        let queries = [
            Query { seat: 5, ..query(&tokens[96..], 96, &with_tail(1)) },
            Query { seat: 1, ..query(&tokens[..9], 0, &[12]) },
            Query { seat: 2, ..query(&tokens[96..], 96, &with_tail(6)) },
        ];
        let logits = engine.run(&queries);
        assert_eq!(bits(&logits[..vocab]), alone, "{label}");
        assert_eq!(bits(&logits[2 * vocab..]), alone, "{label}");
    });
}

pub fn same_bits_after_preemption_and_recompute(name: &str) {
    for_each_device(name, |label, engine, tokens, _| {
        // Decode beyond the prompt, lose the blocks to another sequence, compute prompt and completion again.
        let table = blocks(0, 200);
        let mut logits = engine.run(&[query(tokens, 0, &table)]);
        let mut all = tokens.to_vec();
        for _ in 0..6 {
            all.push(engine.output.token_ids[0]);
            let position = all.len() - 1;
            logits = engine.run(&[query(&all[position..], position as u32, &table)]);
        }
        engine.run(&[query(&[7; 200], 0, &table)]);
        let elsewhere: Vec<u32> = table.iter().rev().copied().collect();
        let again = engine.run(&[query(&all, 0, &elsewhere)]);
        assert_eq!(bits(&again), bits(&logits), "{label}");
    });
}

pub fn same_bits_on_any_number_of_threads(name: &str) {
    for_each_device(name, |label, engine, tokens, alone| {
        for num_threads in [1, 3, 7] {
            let mut other = Engine::new(name, engine.device, num_threads);
            let logits = other.run(&[query(tokens, 0, &blocks(0, tokens.len()))]);
            assert_eq!(bits(&logits), alone, "{label} on {num_threads} threads");
        }
    });
}

/// 700 tokens, past every window: in steps as long as they may be, and in short ones beside a sequence that comes later and decodes.
pub fn same_bits_of_a_long_prompt_beside_others(name: &str) {
    let golden = golden(name);
    let Some(prompt) = golden.prompts.iter().find(|prompt| prompt["name"] == "len700") else {
        panic!("{name} has no prompt of 700 tokens");
    };
    let tokens = ids(&prompt["prompt_token_ids"]);
    for device in same_bits_devices(name) {
        let mut engine = Engine::new(name, device, 2);
        let alone = run_to(&mut engine, &tokens, 0, &blocks(0, tokens.len()));
        let table = blocks(5, tokens.len());
        let other = blocks(60, 200);
        let mut logits = Vec::new();
        for (step, chunk) in tokens.chunks(93).enumerate() {
            let mut queries = vec![query(chunk, step as u32 * 93, &table)];
            match step {
                0 | 1 => {}
                2 => queries.insert(0, Query { seat: 1, ..query(&tokens[..77], 0, &other) }),
                _ => {
                    let position = 74 + step as u32;
                    queries.push(Query { seat: 1, ..query(&[9], position, &other) });
                }
            }
            logits = engine.run(&queries);
        }
        let row = &logits[..engine.vocab_size()];
        assert_eq!(bits(row), bits(&alone), "{name} {device:?}");
    }
}

/// Tests of these names, each a fact of `NAME`.
macro_rules! tests_of {
    ([$($fact:ident)*]) => {$(
        #[test]
        fn $fact() {
            crate::facts::$fact(NAME);
        }
    )*};
}

/// For each fixture in a folder a module with what is true of all, and of these beside.
macro_rules! facts_of {
    ($folder:literal $more:tt; $($module:ident: $name:literal),* $(,)?) => {$(
        mod $module {
            const NAME: &str = concat!($folder, $name);

            crate::facts::tests_of! { [
                logits_agree_with_transformers
                greedy_tokens_are_those_of_transformers
                same_bits_in_any_batch
                same_bits_in_chunks_of_any_size
                same_bits_over_blocks_that_another_sequence_filled
                same_bits_after_preemption_and_recompute
                same_bits_on_any_number_of_threads
            ] }
            crate::facts::tests_of! { $more }
        }
    )*};
}

pub(crate) use {facts_of, tests_of};
