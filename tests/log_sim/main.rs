//! Goal: whatever dies, is cut off, late, lost or repeated, a durable request ends once, its log and every reader have each of its
//! tokens once and in order, and nothing is left in the queue. Method: the policy of `src/log` runs against a model of the server
//! and of what lies between, drawn from a seed; a failing seed is printed and replays.
//!
//! `INFERNO_SIM_SEED=7` runs one seed, `INFERNO_SIM_RUNS=100000` more of them.

#[path = "../scheduler_sim/chance.rs"]
mod chance;
mod known;
mod nodes;
mod readers;
mod server;
mod sweeps;
mod world;

use chance::{Chance, mix};
use world::{Bug, Plan, World};

const DEFAULT_RUNS: u64 = 10_000;

fn draw_plan(seed: u64, bug: Option<Bug>) -> Plan {
    let mut chance = Chance::new(mix(seed));
    let requests = chance.between(1, 8) as usize;
    let wild = chance.percent(50);
    let poisons = match bug {
        None => chance.percent(15),
        Some(bug) => bug == Bug::SuspectsTogether,
    };
    // The first, so that others are there when it strikes.
    let poison = poisons.then_some(0);
    Plan {
        nodes: chance.between(2, 3) as usize,
        requests,
        readers: chance.between(1, 4) as usize,
        // A node that dies of something else beside it would count against the poison.
        crashes: if poison.is_some() { 0 } else { chance.between(0, 4) },
        cuts: if poison.is_some() { 0 } else { chance.between(0, 3) },
        drains: chance.between(0, 2),
        server_deaths: chance.pick(&[0, 0, 1, 2]),
        cancels: chance.pick(&[0, 0, 0, 1]),
        loss_percent: if wild && poison.is_none() { chance.between(0, 20) } else { 0 },
        slow_percent: if wild && poison.is_none() { chance.between(0, 10) } else { 0 },
        poison,
        bug,
    }
}

fn run(seed: u64, bug: Option<Bug>) -> Result<(), String> {
    World::new(draw_plan(seed, bug), seed).run()
}

fn seeds() -> Vec<u64> {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse().ok());
    match number("INFERNO_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("INFERNO_SIM_RUNS").unwrap_or(DEFAULT_RUNS)).collect(),
    }
}

#[test]
fn every_token_is_stored_and_read_once_and_in_order_whatever_fails() {
    for seed in seeds() {
        if let Err(fault) = run(seed, None) {
            panic!("INFERNO_SIM_SEED={seed}: {fault}\n{:?}", draw_plan(seed, None));
        }
    }
}

#[test]
fn a_planted_fault_is_found() {
    for bug in [
        Bug::NoClaim,
        Bug::NoFence,
        Bug::EarlyAck,
        Bug::NoDedupe,
        Bug::SuspectsTogether,
        Bug::NoSweep,
    ] {
        let found = (0..1_000).find(|&seed| run(seed, Some(bug)).is_err());
        assert!(found.is_some(), "{bug:?} is not found");
    }
}
