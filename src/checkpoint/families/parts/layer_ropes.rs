//! Families with two ropes: that of layers that see all, then that of layers that see a window.

use super::ropes::{self, Rope, RopeDefaults};
use crate::checkpoint::fault::{CheckpointError, CheckpointFault};
use crate::checkpoint::json_file::JsonFile;

/// Both ropes: of a `rope_parameters` with an object for each kind of layer, or of the keys before transformers 5, whose
/// scaling is the first rope's alone.
pub fn read(
    config: &JsonFile,
    full: RopeDefaults,
    sliding: RopeDefaults,
) -> Result<Vec<Rope>, CheckpointError> {
    let Some(all) = config.object("rope_parameters")? else {
        refuse_older_name(config)?;
        return Ok(vec![
            ropes::read(config, full)?,
            ropes::read_object(config, None, None, sliding)?,
        ]);
    };
    let mut ropes = Vec::new();
    for (key, defaults) in [("full_attention", full), ("sliding_attention", sliding)] {
        let rope = all.object(key)?.ok_or_else(|| all.expected(key, "an object"))?;
        // The class does not read it from here.
        if rope.boolean("truncate")? == Some(false) {
            return Err(rope.expected("truncate", "true"));
        }
        ropes.push(ropes::read_object(config, Some(&rope), None, defaults)?);
    }
    all.refuse_unread(&[])?;
    Ok(ropes)
}

/// Before version 5, `transformers` read the kind of a `rope_scaling` of these classes under `type`; later versions ignore it. So what
/// such a file means depends on who reads it.
fn refuse_older_name(config: &JsonFile) -> Result<(), CheckpointError> {
    let Some(scaling) = config.object("rope_scaling")? else { return Ok(()) };
    match (scaling.get("rope_type"), scaling.text("type")?) {
        (None, Some(kind)) if kind != "default" => {
            let reason = format!("expected the kind under \"rope_type\", got \"{kind}\" here");
            Err(scaling.fault(CheckpointFault::Unsupported, "type", reason))
        }
        _ => Ok(()),
    }
}
