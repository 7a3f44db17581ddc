//! The report for people.

use std::fmt::{self, Display, Formatter};

use super::{Fit, Report};
use crate::gpu::Card;

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, text: String| writeln!(f, "{name:<15}{text}");
        line("checkpoint", self.directory.display().to_string())?;
        line("family", self.family_line())?;
        line("parameters", self.parameters_line())?;
        line("dtype", self.dtype.to_owned())?;
        line("weights", self.formats_line())?;
        line("context", format!("{} tokens", grouped(self.context_length.into())))?;
        line("end tokens", joined(&self.end_token_ids))?;
        let tokenizer = self.tokenizer_ids.map(|ids| format!("{} ids", grouped(ids.into())));
        line("tokenizer", tokenizer.unwrap_or_else(|| "absent (the node needs one)".to_owned()))?;
        let template = match (&self.chat_template_fault, self.has_chat_template) {
            (Some(fault), _) => format!("cannot be rendered: {fault}"),
            (None, true) => "present".to_owned(),
            (None, false) => "absent: messages are refused".to_owned(),
        };
        line("chat template", template)?;
        line("KV", self.kv_line())?;
        writeln!(f)?;
        self.write_parts(f)?;
        writeln!(f)?;
        self.devices.iter().try_for_each(|fit| self.write_fit(fit, f))
    }
}

impl Report {
    fn family_line(&self) -> String {
        let a = &self.architecture;
        let rope = match a.rope_type {
            "default" => String::new(),
            kind => format!(", rope {kind} times {}", a.rope_factor),
        };
        format!(
            "{}: {} layers, hidden {}, {} heads of {} ({} of keys and values){rope}",
            self.family, a.num_layers, a.hidden_size, a.num_heads, a.head_dim, a.num_kv_heads
        )
    }

    fn formats_line(&self) -> String {
        let named =
            |(format, parameters): &(String, u64)| format!("{format} ({})", rounded(*parameters));
        self.formats.iter().map(named).collect::<Vec<_>>().join(", ")
    }

    fn parameters_line(&self) -> String {
        let p = &self.parameters;
        format!(
            "{} ({}): embedding {}, the rest {} ({})",
            grouped(p.total),
            p.rounded,
            grouped(p.embedding),
            grouped(p.without_embedding),
            rounded(p.without_embedding)
        )
    }

    fn kv_line(&self) -> String {
        let sequence = self.kv_bytes_per_token * u64::from(self.max_seq_len);
        format!(
            "{} bytes per token, {} for a sequence of {}",
            grouped(self.kv_bytes_per_token),
            gib(sequence),
            grouped(self.max_seq_len.into())
        )
    }

    fn write_parts(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<12}{:>18}{:>14}", "part", "parameters", "memory")?;
        for (name, part) in self.parts.named() {
            if name == "lm_head" && self.architecture.tie_word_embeddings {
                writeln!(f, "{name:<12}{:>32}", "tied to the embedding")?;
            } else {
                let memory = gib(part.bytes);
                writeln!(f, "{name:<12}{:>18}{memory:>14}", grouped(part.parameters))?;
            }
        }
        let total = self.parts.total();
        writeln!(f, "{:<12}{:>18}{:>14}", "all", grouped(total.parameters), gib(total.bytes))
    }

    fn write_fit(&self, fit: &Fit, f: &mut Formatter<'_>) -> fmt::Result {
        let card = fit.card.as_ref().map(|card| format!(" ({})", called(card))).unwrap_or_default();
        write!(f, "{}{card}: {} free; ", fit.device, gib(fit.free_bytes))?;
        if let Some(reason) = &fit.refused {
            return writeln!(f, "does not run there: {reason}");
        }
        let (weights, workspace) = (gib(fit.weight_bytes), gib(fit.workspace_bytes));
        write!(f, "weights {weights}, workspace {workspace}")?;
        if !fit.held_in_16_bits.is_empty() {
            write!(f, " (held in 16 bits: {})", fit.held_in_16_bits.join(", "))?;
        }
        write!(f, ": ")?;
        if !fit.fits {
            return writeln!(f, "does not fit, {} short", gib(fit.short_bytes));
        }
        writeln!(
            f,
            "fits, and leaves {} tokens of KV ({} sequences of {}); a node takes {} of them by default",
            grouped(fit.kv_tokens),
            grouped(fit.sequences),
            grouped(self.max_seq_len.into()),
            grouped(fit.kv_tokens_by_default)
        )
    }
}

/// `NVIDIA H200, PCI 00000000:1B:00.0, NUMA node 1`; without the node where it is not known.
fn called(card: &Card) -> String {
    let node = card.numa_node.map(|node| format!(", NUMA node {node}")).unwrap_or_default();
    format!("{}, PCI {}{node}", card.name, card.pci_bus_id)
}

/// `8.03 B`, `134 M`, `960 K`: three figures.
pub(super) fn rounded(count: u64) -> String {
    let count = count as f64;
    let (value, unit) = match count {
        c if c >= 1e9 => (c / 1e9, " B"),
        c if c >= 1e6 => (c / 1e6, " M"),
        c if c >= 1e3 => (c / 1e3, " K"),
        c => return format!("{c}"),
    };
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$}{unit}")
}

/// `8,030,261,248`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn gib(bytes: u64) -> String {
    const MIB: f64 = 1048576.0;
    let mib = bytes as f64 / MIB;
    if mib < 100.0 { format!("{mib:.2} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

fn joined(ids: &[u32]) -> String {
    if ids.is_empty() {
        return "none".to_owned();
    }
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_at_a_glance() {
        for (count, text) in [
            (8_030_261_248, "8.03 B"),
            (70_553_706_496, "70.6 B"),
            (405_853_388_800, "406 B"),
            (134_515_008, "135 M"),
            (9_600, "9.60 K"),
            (12, "12"),
        ] {
            assert_eq!(rounded(count), text);
        }
        assert_eq!(grouped(8_030_261_248), "8,030,261,248");
        assert_eq!(
            (grouped(0), grouped(999), grouped(1000)),
            ("0".into(), "999".into(), "1,000".into())
        );
        assert_eq!((gib(3 << 20), gib(3 << 30)), ("3.00 MiB".into(), "3.00 GiB".into()));
    }
}
