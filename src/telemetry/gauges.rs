//! Gauges that are more than one number from the start.

use metrics::{Gauge, Label};

/// A gauge that is absent until it is set; a plain one is 0 from the start.
pub struct LateGauge(&'static str, Vec<Label>);

impl LateGauge {
    pub(super) fn new(name: &'static str, labels: Vec<Label>) -> Self {
        Self(name, labels)
    }

    /// Sets it.
    pub fn set(&self, value: f64) {
        metrics::gauge!(self.0, self.1.clone()).set(value);
    }
}

/// A gauge with a value for each key (the label `key`), absent until that is set.
pub struct KeyedGauge {
    name: &'static str,
    labels: Vec<Label>,
    gauges: Vec<(&'static str, Gauge)>,
}

impl KeyedGauge {
    pub(super) fn new(name: &'static str, labels: Vec<Label>) -> Self {
        Self { name, labels, gauges: Vec::new() }
    }

    /// Sets the value of a key.
    pub fn set(&mut self, key: &'static str, value: f64) {
        let known = self.gauges.iter().position(|(of, _)| *of == key);
        let at = known.unwrap_or_else(|| {
            let mut labels = self.labels.clone();
            labels.push(Label::new("key", key));
            self.gauges.push((key, metrics::gauge!(self.name, labels)));
            self.gauges.len() - 1
        });
        self.gauges[at].1.set(value);
    }
}

/// The gauge whose labels are what it says.
pub struct InfoGauge(Vec<Label>);

impl InfoGauge {
    pub(super) fn new(labels: Vec<Label>) -> Self {
        Self(labels)
    }

    /// Sets it to 1 for a card; what is not known is an empty label.
    pub fn set(&self, name: &str, numa_node: Option<u32>, pci_bus_id: &str) {
        let numa_node = numa_node.map(|node| node.to_string()).unwrap_or_default();
        let mut labels = self.0.clone();
        labels.push(Label::new("name", name.to_owned()));
        labels.push(Label::new("numa_node", numa_node));
        labels.push(Label::new("pci_bus_id", pci_bus_id.to_owned()));
        metrics::gauge!("inferno_gpu_info", labels).set(1.0);
    }
}
