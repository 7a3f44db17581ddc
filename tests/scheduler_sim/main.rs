//! Goal: whatever happens, no block is lost or wrongly shared, nobody starves, and every request ends once with the tokens it
//! would have alone. Method: the scheduler's and the batcher's policy run against fake devices that really keep KV, with
//! everything else (arrivals, delays, cancels, failures) drawn from a seed; a failing seed is printed and replays.
//!
//! `INFERNO_SIM_SEED=7` runs one seed, `INFERNO_SIM_RUNS=100000` more of them.

mod batcher_side;
mod chance;
mod device;
mod request;
mod step_time;
mod supervisor_side;
mod world;

use batcher_side::draw_spec;
use chance::{Chance, mix};
use inferno_node::ids::ModelId;
use request::End;
use world::{Plan, World};

/// Takes a few seconds without optimisation.
const DEFAULT_RUNS: u64 = 2000;

fn draw_plan(seed: u64) -> Plan {
    let mut chance = Chance::new(mix(seed));
    let devices = chance.pick(&[1, 1, 2, 3]);
    let models = chance.pick(&[1, 1, 2]);
    let requests = chance.between(1, 30) as usize;
    let spec = |model, chance: &mut Chance| draw_spec(ModelId(model), chance);
    let specs: Vec<Vec<_>> = (0..devices)
        .map(|device| {
            // Every model is on the last device, so that it can be run somewhere.
            let here = (0..models).filter(|_| device + 1 == devices || chance.percent(70));
            here.collect::<Vec<_>>().into_iter().map(|model| spec(model, &mut chance)).collect()
        })
        .collect();
    let fails = chance.percent(30);
    Plan {
        closes: devices > 1 && chance.percent(20),
        devices,
        models,
        requests,
        specs,
        step_fails_percent: if fails { chance.between(1, 4) } else { 0 },
        build_fails_percent: chance.pick(&[0, 0, 30]),
        mailbox_full_percent: chance.pick(&[0, 0, 5, 30]),
        cancels_percent: chance.pick(&[0, 10, 40]),
        poison: (!fails && chance.percent(30))
            .then(|| chance.between(0, requests as u64 - 1) as usize),
        panics: chance.percent(10),
        loses: devices > 1 && chance.percent(10),
    }
}

fn run(seed: u64) -> Result<World, String> {
    let mut world = World::new(draw_plan(seed), seed);
    world.run()?;
    innocents_survive(&world)?;
    nobody_starves(&world)?;
    Ok(world)
}

/// One sequence that breaks every step it is in takes nobody with it.
fn innocents_survive(world: &World) -> Result<(), String> {
    if world.plan.step_fails_percent > 0 {
        return Ok(());
    }
    let failed = |end| matches!(end, Some(End::Failed));
    let innocent = world.requests.iter().position(|one| one.poison_at.is_none() && failed(one.end));
    innocent.map_or(Ok(()), |who| Err(format!("request {who} failed for another's fault")))
}

/// Nobody waits longer than everyone's work together takes, one after the other on the slowest device, with twice that for what is
/// computed again, beside ageing and rebuilding.
fn nobody_starves(world: &World) -> Result<(), String> {
    let work: u64 = world.requests.iter().map(|one| one.expected.len() as u64 + 40).sum();
    let bound = 8 * world::AGEING_US
        + world::PATIENCE_US
        + 3 * work * world::MAX_STEP_US
        + u64::from(world.failures) * 50_000
        + world.supervisor.rebuilds_us;
    let slow = world.requests.iter().position(|one| one.ended_us - one.arrived_us > bound);
    slow.map_or(Ok(()), |who| Err(format!("request {who} took more than {bound} us")))
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

#[test]
fn every_request_ends_once_with_the_tokens_it_has_alone() {
    let seeds = match setting("INFERNO_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..setting("INFERNO_SIM_RUNS").unwrap_or(DEFAULT_RUNS),
    };
    let all = seeds.end - seeds.start == 1;
    let (mut preemptions, mut cached_tokens, mut failures, mut failed_builds) = (0, 0, 0, 0);
    let mut gathers = 0;
    for seed in seeds {
        match run(seed) {
            Ok(world) => {
                preemptions += world.preemptions;
                cached_tokens += world.cached_tokens;
                failures += world.failures;
                gathers += world.gathers;
                failed_builds += world.supervisor.failed_builds;
            }
            Err(text) => panic!(
                "{text}\n{:#?}\nreplay with INFERNO_SIM_SEED={seed} cargo test --test scheduler_sim",
                draw_plan(seed)
            ),
        }
    }
    println!(
        "{preemptions} pre-emptions, {cached_tokens} cached tokens, {failures} failures, {failed_builds} of builds, \
         {gathers} waits of newcomers"
    );
    // A simulator that never gets into trouble would show nothing.
    let counts = [preemptions, failures, failed_builds, gathers].map(u64::from);
    assert!(all || cached_tokens > 0 && counts.iter().all(|count| *count > 0));
}

#[test]
fn a_seed_replays() {
    let trace = |seed| {
        let world = run(seed).unwrap_or_else(|text| panic!("seed {seed}: {text}"));
        let ends = world.requests.iter().map(|one| (one.end, one.ended_us, one.taken.clone()));
        (world.now, ends.collect::<Vec<_>>())
    };
    for seed in 0..20 {
        assert_eq!(trace(seed), trace(seed));
    }
}
