//! Goal: the fault table of `docs/durability.md`, at its own counts, over real processes and a real nats-server. Method: hundreds of
//! durable streams whose tokens are known before; faults are made while they run; at the end both what subscribers saw and what the
//! log holds is compared with what is known.
//!
//! These tests wait far more than they compute, so some run at once, whatever the number of cores. `cargo test --test faults cut_off`
//! runs one, `cargo test --test faults -- --list` names them.

use std::future::Future;
use std::time::Instant;

use libtest_mimic::{Arguments, Trial};

mod cuts;
mod disk;
mod fleet;
#[path = "../node/harness.rs"]
#[allow(dead_code, reason = "shared with tests/node, which uses all of it")]
mod harness;
#[path = "../bus/jobs.rs"]
mod jobs;
mod kills;
mod link;
#[path = "../bus/nats.rs"]
#[allow(dead_code, reason = "no test binary that has a server needs all of it")]
mod nats;
mod outages;
mod readers;
mod soak;
mod streams;
mod vitals;

/// As many as two cores bear: with more, JetStream itself answers too late. The longest come first.
const AT_ONCE: usize = 3;

/// A test that is a fact and a future.
macro_rules! trials {
    ($($module:ident::$fact:ident),* $(,)?) => {
        vec![$(trial(stringify!($fact), $module::$fact)),*]
    };
}

fn trial<F>(fact: &str, test: fn() -> F) -> Trial
where
    F: Future<Output = ()> + 'static,
{
    let name = fact.to_owned();
    Trial::test(fact, move || {
        let begin = Instant::now();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().expect("a runtime").block_on(test());
        println!("{name}: {:.0} s", begin.elapsed().as_secs_f64());
        Ok(())
    })
}

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let trials = trials![
        soak::hours_of_half_load_and_a_fault_a_minute_leave_everything_flat,
        cuts::a_node_that_was_cut_off_and_comes_back_writes_nothing,
        outages::nats_that_stops_or_dies_loses_repeats_and_reorders_nothing,
        kills::twenty_kills_lose_repeat_and_reorder_nothing,
        kills::kills_under_the_cpu_engine_change_no_text,
        disk::a_full_disk_loses_nothing_acked_and_is_whole_after_the_remedy,
        readers::five_hundred_resumes_anywhere_miss_and_repeat_nothing,
        readers::slow_readers_are_cut_and_told_or_resume_and_quick_ones_go_on,
        outages::a_wiped_store_ends_every_open_request_in_one_clear_error,
        kills::a_poison_among_two_hundred_is_one_dead_letter,
    ];
    libtest_mimic::run(&arguments, trials).exit();
}
