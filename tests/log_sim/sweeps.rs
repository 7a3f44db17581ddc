//! What nodes do about jobs that the server gives to nobody any more.

use std::time::Duration;

use inferno_node::log::{LogProgress, Remedy};

use crate::server::Delivery;
use crate::world::{ACK_WAIT, Bug, Happening, World};

impl World {
    pub(super) fn sweep(&mut self, node: usize) {
        let again = ACK_WAIT + self.chance.between(0, 500);
        self.after(again, Happening::Sweep(node));
        if !self.is_here(node) || self.plan.bug == Some(Bug::NoSweep) {
            return;
        }
        for delivery in self.queue.given_out() {
            self.look_at(node, &delivery);
        }
        self.nodes[node].strays.seen_all();
    }

    fn look_at(&mut self, node: usize, delivery: &Delivery) {
        let progress = LogProgress::of(self.log.records(delivery.request).last());
        let now = Duration::from_millis(self.now);
        let strays = &mut self.nodes[node].strays;
        match strays.look(now, delivery.number as u64, progress) {
            None => return,
            Some(Remedy::Remove) => {}
            Some(Remedy::PublishAgain) => {
                if self.room(node) == 0 || self.is_run(delivery.request) {
                    return;
                }
                self.queue.publish_again(delivery);
            }
        }
        // A node may die, or its message be lost, before that.
        if !self.chance.percent(self.plan.loss_percent) {
            self.queue.remove(delivery.number);
        }
    }

    pub(super) fn is_here(&self, node: usize) -> bool {
        self.nodes[node].is_up && self.nodes[node].cut_until <= self.now
    }

    /// Whether somebody says so, who may not be heard.
    fn is_run(&mut self, request: usize) -> bool {
        let runs = |node: usize| self.nodes[node].held.contains_key(&request);
        (0..self.nodes.len()).any(|node| self.is_here(node) && runs(node))
            && self.chance.percent(80)
    }
}
