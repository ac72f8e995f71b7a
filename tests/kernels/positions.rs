//! A row's bits are the same whatever other rows a step has: alone, among the next tokens of its sequence, or in
//! a batch with other sequences. That is what makes speculation and batching return the text of plain decoding.

use crate::common;
use crate::common::outputs::{Planes, floats};
use samara::gpu::{Bindings, BufferRange, Executor, Gpu, pack_values};
use samara::kernels::AttentionDecode;
use samara::kernels::AttentionMerge;
use samara::kernels::QkNormRope;
use samara::kernels::QkNormRopeAttention;
use samara::kernels::{Kernel, KvCache, QkvProjection, SPLIT_KEYS, rope_table};
use samara::tensor::{DType, Shape, Tensors};

const S: usize = 800;
const H: usize = 4;
const HKV: usize = 2;

/// Repeatable values in [-1, 1).
fn values(n: usize, seed: usize) -> Vec<f64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed as u64 + 1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        f64::from((state >> 40) as u32) / f64::from(1u32 << 23) - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// A token of a sequence.
#[derive(Clone, Copy)]
struct Row {
    sequence: usize,
    position: usize,
    slot: usize,
}

/// What is common to the steps of a test.
#[derive(Clone, Copy, Debug)]
struct Way {
    fused: bool,
    dtype: DType,
    head_dim: usize,
    /// Workgroups that share the keys of a head.
    splits: usize,
}

/// A layer's cache on the device.
struct Cache {
    way: Way,
    slots: Option<usize>,
    k: BufferRange,
    v: BufferRange,
}

fn upload(gpu: &Gpu, shape: impl Into<Shape>, dtype: DType, values: &[f64]) -> BufferRange {
    let mut tensors = Tensors::default();
    let id = tensors.add("tensor", shape, dtype);
    let bytes = pack_values(&tensors[id], values).remove(0);
    let range = gpu.storage("tensor", bytes.len() as u64).unwrap();
    gpu.write(&range, 0, &bytes);
    range
}

impl Cache {
    /// Fills each slot with the keys and values of a sequence.
    fn new(gpu: &Gpu, way: Way, sequences: &[usize], batch: bool) -> Self {
        let slots = batch.then_some(sequences.len());
        let [k, v] = [0, 1].map(|which| {
            let of = |&sequence: &usize| values(HKV * S * way.head_dim, 2 * sequence + which);
            let cached: Vec<f64> = sequences.iter().flat_map(of).collect();
            upload(gpu, [sequences.len(), HKV, S, way.head_dim], way.dtype, &cached)
        });
        Self { way, slots, k, v }
    }

    /// Runs a step; returns each row's output.
    fn step(&self, gpu: &Gpu, rows: &[Row]) -> Vec<Vec<u8>> {
        let Way { fused, dtype, head_dim, splits } = self.way;
        let (mut tensors, mut ranges) = (Tensors::default(), Vec::new());
        let mut tensor = |name: &str, shape: Shape, dtype, range: BufferRange| {
            ranges.push(vec![range]);
            tensors.add(name, shape, dtype)
        };
        let mut input = |name: &str, shape: Shape, dtype, values: &[f64]| {
            tensor(name, shape.clone(), dtype, upload(gpu, shape, dtype, values))
        };
        // The heads of a token depend on its sequence and position alone.
        let of = |row: &Row| values((H + 2 * HKV) * head_dim, 1000 * row.sequence + row.position);
        let packed: Vec<f64> = rows.iter().flat_map(of).collect();
        let qkv = input("qkv", [rows.len(), (H + 2 * HKV) * head_dim].into(), DType::F32, &packed);
        let q_weight = input("q_weight", [head_dim].into(), DType::F32, &values(head_dim, 3));
        let k_weight = input("k_weight", [head_dim].into(), DType::F32, &values(head_dim, 5));
        let angles = rope_table(S, head_dim, 10000.0);
        let table = input("table", [S, head_dim].into(), DType::F32, &angles);
        let positions: Vec<f64> =
            rows.iter().flat_map(|row| [row.position as f64, row.slot as f64]).collect();
        let position = match self.slots {
            Some(_) => input("position", [rows.len(), 2].into(), DType::U32, &positions),
            None => input("position", [1].into(), DType::U32, &positions[..1]),
        };
        let wide: Shape = [rows.len(), H * head_dim].into();
        let zeros = vec![0.0; wide.elements()];
        let q = input("q", wide.clone(), DType::F32, &zeros);
        let out = input("out", wide, DType::F32, &zeros);
        let mix = if splits == 1 {
            out
        } else {
            let parts = [rows.len(), H, splits, head_dim + 4];
            input("parts", parts.into(), DType::F32, &vec![0.0; parts.iter().product()])
        };
        let shape: Shape = match self.slots {
            Some(slots) => [slots, HKV, S, head_dim].into(),
            None => [HKV, S, head_dim].into(),
        };
        let k = tensor("k_cache", shape.clone(), dtype, self.k.clone());
        let v = tensor("v_cache", shape, dtype, self.v.clone());
        let of = QkvProjection { qkv, q_weight, k_weight, table, eps: 1e-6 };
        let cache = KvCache { k, v, position };
        let mut kernels: Vec<Box<dyn Kernel>> = if fused {
            vec![Box::new(QkNormRopeAttention::new(&tensors, of, cache, mix))]
        } else {
            vec![
                Box::new(QkNormRope::new(&tensors, of, cache, q)),
                Box::new(AttentionDecode::new(&tensors, q, cache, mix, H)),
            ]
        };
        if splits > 1 {
            kernels.push(Box::new(AttentionMerge::new(&tensors, mix, out)));
        }
        let ranges = Planes(ranges);
        let steps = kernels.iter().map(|kernel| ("step", &**kernel));
        Executor::new(gpu, steps, &ranges).unwrap().run(gpu);
        let bytes = gpu.read(&ranges.ranges(out)[0]).unwrap();
        bytes.chunks(H * head_dim * 4).map(<[u8]>::to_vec).collect()
    }

    fn bytes(&self, gpu: &Gpu) -> [Vec<u8>; 2] {
        [&self.k, &self.v].map(|range| gpu.read(range).unwrap())
    }
}

/// Calls `check` for every tier, both ways to attend, and head sizes in either cache.
fn each_way(check: impl Fn(&Gpu, Way)) {
    for gpu in common::gpus() {
        for fused in [true, false] {
            for (dtype, head_dim, splits) in [
                (DType::F16, 64, 1),
                (DType::F32, 128, 1),
                (DType::Q8_0Rows, 32, 1),
                (DType::Q8_0Rows, 64, 5),
            ] {
                check(&gpu, Way { fused, dtype, head_dim, splits });
            }
        }
    }
}

#[test]
fn tokens_of_a_sequence_are_the_same_one_by_one_and_together() {
    each_way(|gpu, way| {
        // Past the end of a chunk of keys, and from the first token on.
        for (first, tokens) in [(252, 8), (0, 5)] {
            let row = |t: usize| Row { sequence: 4, position: first + t, slot: 0 };
            let rows: Vec<Row> = (0..tokens).map(row).collect();
            let single = Cache::new(gpu, way, &[4], false);
            let alone: Vec<_> = rows.iter().flat_map(|row| single.step(gpu, &[*row])).collect();
            let few = Cache::new(gpu, way, &[4], false);
            let (before, after) = rows.split_at(2);
            let together = [few.step(gpu, before), few.step(gpu, after)].concat();
            assert!(alone.iter().flatten().any(|&byte| byte != 0));
            for (t, (together, alone)) in together.iter().zip(&alone).enumerate() {
                assert!(together == alone, "{way:?}, tier {}: row {t} from {first} on", gpu.tier());
            }
            assert!(few.bytes(gpu) == single.bytes(gpu), "{way:?}, tier {}: cache", gpu.tier());
        }
    });
}

#[test]
fn workgroups_that_share_the_keys_of_a_head_find_the_same() {
    each_way(|gpu, way| {
        // The first are too few to share; for the others the last share is short.
        for (position, splits) in [(0, 5), (300, 8), (766, 3), (767, 5), (799, 7)] {
            let row = Row { sequence: 4, position, slot: 0 };
            let step = |splits| Cache::new(gpu, Way { splits, ..way }, &[4], false).step(gpu, &[row]);
            if position + 1 < SPLIT_KEYS {
                assert!(step(splits) == step(1), "{way:?}, splits {splits} at {position}");
                continue;
            }
            let error = common::nmse(&floats(&step(splits)[0]), &floats(&step(1)[0]));
            assert!(error <= 1e-12, "{way:?}, splits {splits} at {position}: NMSE {error:e}");
        }
    });
}

#[test]
fn rows_of_a_batch_are_the_same_as_each_sequence_alone() {
    each_way(|gpu, way| {
        // The sequences in the slots; the one in slot 1 takes no part in the step.
        let sequences = [9, 7, 2, 5];
        let rows = [
            Row { sequence: 5, position: 300, slot: 3 },
            Row { sequence: 9, position: 0, slot: 0 },
            Row { sequence: 2, position: 70, slot: 2 },
        ];
        let batch = Cache::new(gpu, way, &sequences, true);
        let together = batch.step(gpu, &rows);
        let found = batch.bytes(gpu);
        for (row, together) in rows.iter().zip(together) {
            let single = Cache::new(gpu, way, &[row.sequence], false);
            let alone = single.step(gpu, &[*row]);
            assert!(together == alone[0], "{way:?}, tier {}: slot {}", gpu.tier(), row.slot);
            for (batch, single) in found.iter().zip(single.bytes(gpu)) {
                let slot = &batch[row.slot * single.len()..][..single.len()];
                assert!(slot == single, "{way:?}, tier {}: slot {}", gpu.tier(), row.slot);
            }
        }
        let idle = Cache::new(gpu, way, &[7], false).bytes(gpu);
        assert!(found.iter().zip(idle).all(|(batch, idle)| batch[idle.len()..][..idle.len()] == idle));
    });
}
