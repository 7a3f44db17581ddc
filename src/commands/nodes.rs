//! `inferno-node nodes`: who is there on one NATS, as a table or as lines of JSON.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use serde::Serialize;

use super::bus_target::{BusArgs, BusTarget};
use super::presence;
use super::process::EndSignals;
use crate::bus::discovery::{ModelState, NodeEntry, NodeState, NodeTable, SeenNode};
use crate::clock::Timestamp;

/// How often what is watched is looked at where nothing comes: ages grow, and nodes become stale.
const LOOK: Duration = Duration::from_millis(250);

/// How long NATS may take to answer.
const WAIT: Duration = Duration::from_secs(10);

/// What clears a terminal: home, then all below.
const CLEAR: &str = "\x1b[H\x1b[J";

/// What the command takes.
#[derive(Debug, Clone, clap::Args)]
pub struct NodesArgs {
    /// Where NATS is
    #[command(flatten)]
    pub bus: BusArgs,
    /// Go on until Ctrl-C, and show what changes
    #[arg(long, short)]
    pub watch: bool,
    /// One line of JSON for each node; with --watch, one whenever it says something new or is heard no more
    #[arg(long)]
    pub json: bool,
}

/// A node as a line of JSON: its entry, and how it is seen from here.
#[derive(Serialize)]
struct NodeLine<'a> {
    #[serde(flatten)]
    entry: &'a NodeEntry,
    state: NodeState,
    /// Since it was heard.
    age_ms: u64,
}

/// Runs the command. Needs a tokio runtime with I/O and time.
///
/// # Errors
/// For a person: why the nodes are not known.
pub async fn run(args: NodesArgs) -> Result<(), String> {
    let target = BusTarget::choose(&args.bus, None, &presence::find());
    let client = target.connect(&args.bus, WAIT).await.map_err(|error| error.to_string())?;
    let mut reader = client.nodes();
    reader.read().await.map_err(|fault| format!("discovery is off: {fault}"))?;
    let mut screen = Screen::new(args.json);
    if !args.watch {
        return screen.show(reader.table(), Timestamp::now());
    }
    let mut signals = EndSignals::listen()?;
    loop {
        screen.update(reader.table(), Timestamp::now())?;
        tokio::select! {
            () = signals.next() => return Ok(()),
            followed = reader.follow(LOOK) => if let Err(fault) = followed {
                screen.say(&format!("discovery is off: {fault}"));
            },
        }
    }
}

/// What is shown, and was.
struct Screen {
    json: bool,
    is_terminal: bool,
    /// The last text, without what changes by itself.
    shown: Option<String>,
    /// The last line of JSON of each node, without what changes by itself.
    lines: std::collections::BTreeMap<String, String>,
    said: Option<String>,
}

impl Screen {
    fn new(json: bool) -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        Self { json, is_terminal, shown: None, lines: Default::default(), said: None }
    }

    /// All that is there, once.
    fn show(&mut self, table: &NodeTable, now: Timestamp) -> Result<(), String> {
        let text = match self.json {
            true => table.nodes(now).map(|node| line(&node)).collect(),
            false => table_of(table, now, true),
        };
        super::print_out(&text)
    }

    /// What is new.
    fn update(&mut self, table: &NodeTable, now: Timestamp) -> Result<(), String> {
        if self.json {
            return self.update_lines(table, now);
        }
        // A terminal is drawn again whenever an age grows; elsewhere ages alone are no news.
        let text = table_of(table, now, self.is_terminal);
        if self.shown.as_ref() == Some(&text) {
            return Ok(());
        }
        let whole = table_of(table, now, true);
        self.shown = Some(text);
        match self.is_terminal {
            true => super::print_out(&format!("{CLEAR}{whole}")),
            false => super::print_out(&format!("{whole}\n")),
        }
    }

    fn update_lines(&mut self, table: &NodeTable, now: Timestamp) -> Result<(), String> {
        let mut new = String::new();
        let mut lines = std::collections::BTreeMap::new();
        for node in table.nodes(now) {
            let entry = NodeEntry { timestamp: String::new(), ..node.entry.clone() };
            let steady = line(&SeenNode { entry: &entry, silence: Duration::ZERO, ..node.clone() });
            if self.lines.get(&entry.id) != Some(&steady) {
                new.push_str(&line(&node));
            }
            lines.insert(entry.id, steady);
        }
        for id in self.lines.keys().filter(|id| !lines.contains_key(*id)) {
            new.push_str(&format!("{}\n", serde_json::json!({"id": id, "state": NodeState::Gone})));
        }
        self.lines = lines;
        super::print_out(&new)
    }

    /// Says what is wrong, once.
    fn say(&mut self, text: &str) {
        if self.said.as_deref() != Some(text) {
            // There is nobody else to tell.
            let _ = writeln!(std::io::stderr(), "inferno-node: {text}");
            self.said = Some(text.to_owned());
        }
    }
}

fn line(node: &SeenNode<'_>) -> String {
    let age_ms = node.silence.as_millis() as u64;
    let line = NodeLine { entry: node.entry, state: node.state, age_ms };
    serde_json::to_string(&line).unwrap_or_default() + "\n"
}

/// The columns of the table.
const COLUMNS: [&str; 10] = [
    "NODE",
    "STATE",
    "HEALTH",
    "MODELS",
    "DEVICES",
    "RUN/WAIT",
    "FREE BLOCKS",
    "VERSION",
    "ADDRESS",
    "AGE",
];

fn table_of(table: &NodeTable, now: Timestamp, with_ages: bool) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(table.nodes(now).map(|node| row(&node, with_ages)));
    if rows.len() == 1 {
        return "no nodes\n".to_owned();
    }
    let widths: Vec<usize> = (0..COLUMNS.len())
        .map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn row(node: &SeenNode<'_>, with_age: bool) -> [String; COLUMNS.len()] {
    let entry = node.entry;
    let state = match (node.state, entry.ready) {
        (NodeState::Live, false) => "live, not ready".to_owned(),
        (state, _) => state.as_str().to_owned(),
    };
    let models = entry.models.iter().map(|model| match model.state {
        ModelState::Ready => model.name.clone(),
        ModelState::Loading => format!("{} (loading)", model.name),
    });
    let devices = entry.devices.iter().map(|device| match device.up {
        true => device.id.clone(),
        false => format!("{} (down)", device.id),
    });
    let total: u64 = entry.devices.iter().map(|device| u64::from(device.total_blocks)).sum();
    let age = if with_age { format!("{:.1} s", node.silence.as_secs_f64()) } else { String::new() };
    let address = match entry.addresses.as_slice() {
        [] => entry.host.clone(),
        addresses => addresses.join(","),
    };
    [
        entry.id.clone(),
        state,
        entry.health.as_str().to_owned(),
        models.collect::<Vec<_>>().join(","),
        devices.collect::<Vec<_>>().join(","),
        format!("{}/{}", entry.running, entry.waiting),
        format!("{} of {total}", entry.free_blocks),
        entry.version.clone(),
        address,
        age,
    ]
}
