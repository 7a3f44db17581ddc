//! Injected faults, for tests and drills: the same for every kind of device, off unless `executor.faults` has entries.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::bridge::ffi::{MemoryStats, StepBatch, StepOutput};
use crate::bridge::{DeviceError, DeviceErrorCode};

use super::config::{Fault, FaultKind};
use super::{Device, DeviceLoad, LoadState, Pipeline, SeatBinding};
use crate::ids::{DeviceId, ModelId};

/// The faults of one device. The node keeps it over rebuilds, so a fault that strikes once does not strike every new build.
#[derive(Debug, Default)]
pub struct FaultPlan {
    faults: Vec<(Fault, AtomicBool)>,
    steps: AtomicU64,
}

impl FaultPlan {
    /// Those of the configured faults that are for `device`.
    pub fn of(device: &DeviceId, faults: &[Fault]) -> Arc<Self> {
        let ours = |fault: &&Fault| fault.device.as_deref().is_none_or(|d| d == device.as_str());
        Arc::new(Self {
            faults: faults.iter().filter(ours).map(|f| (f.clone(), false.into())).collect(),
            steps: AtomicU64::new(0),
        })
    }

    /// Whether there is any.
    pub fn is_empty(&self) -> bool {
        self.faults.is_empty()
    }

    /// Counts a step and fails where it is to fail.
    fn strike_now(&self, batch: &StepBatch) -> Result<(), DeviceError> {
        match self.strike(batch) {
            None => Ok(()),
            Some(FaultKind::Exception) => Err(DeviceError::other("injected fault")),
            Some(FaultKind::Sticky) => {
                let message = "injected fault".to_owned();
                Err(DeviceError { code: DeviceErrorCode::Sticky, message })
            }
            #[allow(clippy::panic)] // What a drill asks for: the executor must catch it.
            Some(FaultKind::Panic) => panic!("injected fault"),
            Some(FaultKind::Abort) => std::process::abort(),
            Some(FaultKind::Hang) => loop {
                std::thread::park();
            },
        }
    }

    /// Counts a step and says whether, and how, it is to fail.
    fn strike(&self, batch: &StepBatch) -> Option<FaultKind> {
        let step = self.steps.fetch_add(1, Ordering::Relaxed) + 1;
        self.faults
            .iter()
            .find(|(fault, struck)| match (fault.step, fault.token_id) {
                (Some(at), _) => at == step && !struck.swap(true, Ordering::Relaxed),
                (None, Some(poison)) => computes(batch, poison),
                (None, None) => false,
            })
            .map(|(fault, _)| fault.kind)
    }
}

/// Whether the step computes this token. Where the last sampled token is fed back, the host's array holds nothing.
fn computes(batch: &StepBatch, token_id: u32) -> bool {
    let mut rest = batch.token_ids.as_slice();
    batch.query_lens.iter().zip(&batch.feed_sampled).any(|(len, fed)| {
        let tokens;
        (tokens, rest) = rest.split_at(rest.len().min(*len as usize));
        !fed && tokens.contains(&token_id)
    })
}

/// A device with faults on top.
pub(super) struct FaultyDevice {
    pub device: Box<dyn Device>,
    pub plan: Arc<FaultPlan>,
}

impl Device for FaultyDevice {
    fn begin_load(&mut self, load: DeviceLoad) -> Result<(), DeviceError> {
        self.device.begin_load(load)
    }

    fn load_next(&mut self, model: ModelId) -> Result<LoadState, DeviceError> {
        self.device.load_next(model)
    }

    fn unload(&mut self, model: ModelId) -> Result<(), DeviceError> {
        self.device.unload(model)
    }

    fn bind(&mut self, model: ModelId, binding: &SeatBinding) -> Result<(), DeviceError> {
        self.device.bind(model, binding)
    }

    fn run(
        &mut self,
        model: ModelId,
        batch: &mut StepBatch,
        output: &mut StepOutput,
    ) -> Result<(), DeviceError> {
        self.plan.strike_now(batch)?;
        self.device.run(model, batch, output)
    }

    fn pipeline(&mut self) -> Option<&mut dyn Pipeline> {
        // Looked at anew: the device below may have none.
        self.device.pipeline()?;
        Some(self)
    }

    fn memory(&self) -> Result<MemoryStats, DeviceError> {
        self.device.memory()
    }
}

impl FaultyDevice {
    fn below(&mut self) -> Result<&mut dyn Pipeline, DeviceError> {
        self.device.pipeline().ok_or_else(|| DeviceError::other("the device has no pipeline"))
    }
}

impl Pipeline for FaultyDevice {
    fn submit(&mut self, model: ModelId, batch: &mut StepBatch) -> Result<(), DeviceError> {
        self.plan.strike_now(batch)?;
        self.below()?.submit(model, batch)
    }

    fn has_ended(&mut self) -> Result<bool, DeviceError> {
        self.below()?.has_ended()
    }

    fn take(&mut self, output: &mut StepOutput) -> Result<(), DeviceError> {
        self.below()?.take(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(token_ids: &[u32], feed: bool) -> StepBatch {
        StepBatch {
            token_ids: token_ids.to_vec(),
            query_lens: vec![token_ids.len() as u32],
            feed_sampled: vec![feed],
            ..StepBatch::default()
        }
    }

    fn at_step(device: Option<&str>, step: u64) -> Fault {
        let device = device.map(str::to_owned);
        Fault { device, step: Some(step), token_id: None, kind: FaultKind::Panic }
    }

    #[test]
    fn a_fault_at_a_step_strikes_once() {
        let plan = FaultPlan::of(&DeviceId::new("cpu:0"), &[at_step(None, 2)]);
        let batch = batch(&[1], false);
        let strikes: Vec<_> = (0..4).map(|_| plan.strike(&batch)).collect();
        assert_eq!(strikes, [None, Some(FaultKind::Panic), None, None]);
    }

    #[test]
    fn faults_of_other_devices_are_not_ours() {
        let faults = [at_step(Some("cpu:1"), 1)];
        assert!(FaultPlan::of(&DeviceId::new("cpu:0"), &faults).is_empty());
        assert!(!FaultPlan::of(&DeviceId::new("cpu:1"), &faults).is_empty());
    }

    #[test]
    fn poison_strikes_every_step_that_computes_it() {
        let poison =
            Fault { device: None, step: None, token_id: Some(42), kind: FaultKind::Exception };
        let plan = FaultPlan::of(&DeviceId::new("sim:0"), &[poison]);
        assert_eq!(plan.strike(&batch(&[1, 42], false)), Some(FaultKind::Exception));
        assert_eq!(plan.strike(&batch(&[1, 42], false)), Some(FaultKind::Exception));
        assert_eq!(plan.strike(&batch(&[1, 2], false)), None);
        assert_eq!(plan.strike(&batch(&[42], true)), None);
    }
}
