//! The section `[batcher]`.

use super::super::*;

#[test]
fn defaults_are_valid() {
    assert_eq!(Config::default().check(false), Ok(()));
    assert_eq!(Config::default().check(true), Ok(()));
}

#[test]
fn every_wrong_key_is_named() {
    let config = Config {
        max_batch_size: Some(0),
        max_step_tokens: Some(1 << 21),
        block_size: 24,
        reserve_tokens: u32::MAX,
        ..Config::default()
    };
    let wrong = config.check(false).expect_err("four wrong keys");
    for key in ["max_batch_size", "max_step_tokens", "block_size", "reserve_tokens"] {
        assert!(wrong.iter().any(|line| line.starts_with(&format!("batcher.{key}: "))), "{key}");
    }
}

#[test]
fn what_is_not_set_suits_the_device_and_gives_way_to_what_is() {
    let config = |max_batch_size, max_step_tokens| Config {
        max_batch_size,
        max_step_tokens,
        ..Config::default()
    };
    assert_eq!(config(None, None).largest_step(false), (32, 512));
    assert_eq!(config(None, None).largest_step(true), (256, 2_048));
    assert_eq!(config(Some(4_096), None).largest_step(true), (4_096, 4_096));
    assert_eq!(config(None, Some(16)).largest_step(true), (16, 16));
    assert_eq!(config(Some(8), Some(64)).largest_step(true), (8, 64));
    assert!(config(None, Some(0)).check(false).is_err());
    assert!(config(Some(64), Some(63)).check(false).is_err());
}

#[test]
fn the_fields_other_names_are_known_and_foreign_ones_are_not() {
    let config: Config =
        serde_json::from_str(r#"{"max_num_seqs": 8, "enable_prefix_caching": false}"#)
            .expect("aliases");
    assert_eq!((config.max_batch_size, config.enable_prefix_cache), (Some(8), false));
    assert!(serde_json::from_str::<Config>(r#"{"max_seqs": 8}"#).is_err());
}
