//! `out[t, h] = sum over i of 2^(top_i - top) * sum_i / sum over i of 2^(top_i - top) * total_i`: merges the
//! partial attention of workgroups that shared the keys of a row and head.
//!
//! Not fused: a reader of the output needs all parts, and the workgroups of a dispatch are not ordered.

use bytemuck::{Pod, Zeroable};

use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Merge of the parts of attention.
#[derive(Clone, Debug)]
pub struct AttentionMerge {
    /// Parts: `Dh` weighted sums of values, then the largest score as an exponent of two, the sum of weights
    /// and two zeros, `[T, H, splits, Dh + 4]` f32.
    pub parts: TensorId,
    /// Weighted values, `[T, H * Dh]` f32.
    pub out: TensorId,
    rows: usize,
    splits: usize,
    head_dim: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
}

const _: () = assert!(size_of::<Params>() == 4);

impl AttentionMerge {
    /// Returns the merge of `parts` into `out`.
    ///
    /// # Panics
    /// When shapes do not fit.
    pub fn new(tensors: &Tensors, parts: TensorId, out: TensorId) -> Self {
        let &[tokens, heads, splits, width] = tensors[parts].shape.dims() else {
            panic!("attention_merge takes [T, H, splits, Dh + 4]")
        };
        assert!(width > 4 && width.is_multiple_of(4), "a part is vectors of four: {width} values");
        tensors.expect(parts, [tokens, heads, splits, width], DType::F32);
        tensors.expect(out, [tokens, heads * (width - 4)], DType::F32);
        Self { parts, out, rows: tokens * heads, splits, head_dim: width - 4 }
    }
}

impl Kernel for AttentionMerge {
    fn name(&self) -> &'static str {
        "attention_merge"
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        vec![fragment!("attention_merge.wgsl")]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read(self.parts), Operand::write(self.out)]
    }

    fn shape(&self) -> String {
        format!("T x H {}, Dh {}, splits {}", self.rows, self.head_dim, self.splits)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(64)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let wg = choice.of(&self.tunables()[0]);
        let cols = self.head_dim / 4;
        Dispatch {
            overrides: vec![("WG", f64::from(wg)), ("COLS", cols as f64), ("SPLITS", self.splits as f64)],
            params: bytemuck::bytes_of(&Params { rows: dim(self.rows) }).to_vec(),
            grid: [dim((self.rows * cols).div_ceil(wg as usize)), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let (rows, splits, head_dim) = (self.rows as u64, self.splits as u64, self.head_dim as u64);
        Cost {
            read: 4 * rows * splits * (head_dim + 4),
            written: 4 * rows * head_dim,
            flops: rows * head_dim * (2 * splits + 1),
        }
    }

    fn reference(&self, memory: &mut Memory) {
        let width = self.head_dim + 4;
        memory.update(self.out, |memory, out| {
            let rows = memory.read(self.parts).chunks(self.splits * width);
            for (parts, out) in rows.zip(out.chunks_mut(self.head_dim)) {
                let top = parts.chunks(width).map(|part| part[self.head_dim]).fold(f64::NEG_INFINITY, f64::max);
                let weight = |part: &[f64]| (part[self.head_dim] - top).exp2();
                let total: f64 =
                    parts.chunks(width).map(|part| weight(part) * part[self.head_dim + 1]).sum();
                for (d, out) in out.iter_mut().enumerate() {
                    *out = parts.chunks(width).map(|part| weight(part) * part[d]).sum::<f64>() / total;
                }
            }
        });
    }
}

/// OpenELM's heads, for one row and a few, with parts that are empty or far below the others.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, [tokens, heads, splits, dh]: [usize; 4], spread: f64, empty: usize, bench| {
        let mut case = CaseBuilder::new(format!("{label}, T {tokens}, H {heads}, splits {splits}, Dh {dh}")).benched(bench);
        let value = |i: usize| (i * 7919 % 1013) as f64 / 506.5 - 1.0;
        let part = |row: usize, split: usize| -> Vec<f64> {
            let i = row * splits + split;
            if split + empty >= splits {
                return [vec![0.0; dh], vec![f64::from(-3e38_f32), 0.0, 0.0, 0.0]].concat();
            }
            let sums = (0..dh).map(|d| f64::from(value(i * dh + d) as f32));
            sums.chain([f64::from((spread * value(i)) as f32), 1.5 + value(i + 3), 0.0, 0.0]).collect()
        };
        let values = (0..tokens * heads).flat_map(|row| (0..splits).flat_map(move |split| part(row, split)));
        let values = Fill::Values(values.map(|v| f64::from(v as f32)).collect());
        let parts = case.tensor("parts", [tokens, heads, splits, dh + 4], DType::F32, values);
        let out = case.tensor("out", [tokens, heads * dh], DType::F32, Fill::Zero);
        let kernel = AttentionMerge::new(&case.tensors, parts, out);
        case.build(kernel, 1e-12, "sums of a few products in f32; exp2 within 3 + 2 |x| ULP")
    };
    let mut cases = vec![
        case("OpenELM", [1, 20, 4, 64], 4.0, 0, true),
        case("OpenELM", [1, 24, 8, 128], 4.0, 0, true),
        case("a few", [5, 12, 8, 64], 4.0, 0, false),
        case("fable", [1, 6, 3, 32], 4.0, 0, false),
        case("one part", [2, 3, 1, 64], 4.0, 0, false),
    ];
    cases.push(case("empty parts", [1, 3, 5, 64], 4.0, 3, false));
    cases.push(case("tops far apart", [2, 3, 5, 64], 300.0, 0, false));
    cases
}
