//! A sequence joins a long queue and, for one seat that has come free, the best one leaves it.

use criterion::{BenchmarkId, Criterion, Throughput};
use inferno_node::clock::Timestamp;
use inferno_node::executor::DeviceId;
use inferno_node::scheduler::{Config, Credit, Scheduling};

use super::{LEN, MODEL, sequence};

struct Queue {
    policy: Scheduling<u64>,
    device: DeviceId,
    last_id: u64,
    assigned: u64,
}

impl Queue {
    fn of(waiting: u64) -> Self {
        let device = DeviceId::new("sim:0");
        let mut policy = Scheduling::new(Config::default());
        policy.device_up(&device, 1);
        let mut queue = Self { policy, device, last_id: 0, assigned: 0 };
        queue.credit(0);
        (0..waiting).for_each(|_| queue.enqueue());
        queue
    }

    fn enqueue(&mut self) {
        self.last_id += 1;
        self.policy.enqueue(sequence(self.last_id, LEN), self.last_id);
    }

    fn credit(&mut self, seats: u32) {
        self.policy.credit(Credit {
            device: self.device.clone(),
            generation: 1,
            model: MODEL,
            assigned: self.assigned,
            seats,
            free_blocks: 4_096,
            total_blocks: 8_192,
            block_size: 16,
            reserve_tokens: LEN,
            open: true,
        });
    }

    fn one_in_one_out(&mut self) {
        self.enqueue();
        self.credit(1);
        let now = Timestamp::from_micros(self.last_id);
        let assigned = self.policy.next(now).expect("there is a seat");
        self.assigned += 1;
        assert!(self.policy.next(now).is_none(), "there was one seat");
        std::hint::black_box(assigned);
    }
}

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler_assign");
    group.throughput(Throughput::Elements(1));
    for waiting in [1_u64, 1_024] {
        let mut queue = Queue::of(waiting);
        let name = BenchmarkId::from_parameter(waiting);
        group.bench_function(name, |b| b.iter(|| queue.one_in_one_out()));
    }
    group.finish();
}
