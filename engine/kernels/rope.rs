//! `out[j] = x[j] cos - x[j + Dh/2] sin`, `out[j + Dh/2] = x[j + Dh/2] cos + x[j] sin`: rotary position
//! embedding of every head, rotate-half layout, the token's position taken from the device.

use bytemuck::{Pod, Zeroable};

use super::{Case, CaseBuilder, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

const WG: usize = 64;

/// Rotary position embedding.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Heads to rotate, `[T, heads * Dh]` f32.
    pub x: TensorId,
    /// Cosines, then sines of each position, `[S, Dh]` f32.
    pub table: TensorId,
    /// Tokens cached before the step, `[1]` u32.
    pub position: TensorId,
    /// Rotated heads, `[T, heads * Dh]` f32.
    pub out: TensorId,
    tokens: usize,
    heads: usize,
    head_dim: usize,
    context: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rotations: u32,
    half: u32,
    heads: u32,
    tokens: u32,
    context: u32,
}

const _: () = assert!(size_of::<Params>() == 20);

impl Rope {
    /// Returns the rotation of `x` into `out`.
    ///
    /// # Panics
    /// When shapes do not fit, `Dh` is no multiple of 8 or the step is longer than the table.
    pub fn new(tensors: &Tensors, x: TensorId, table: TensorId, position: TensorId, out: TensorId) -> Self {
        let &[tokens, row] = tensors[x].shape.dims() else { panic!("rope takes [T, heads * Dh]") };
        let &[context, head_dim] = tensors[table].shape.dims() else { panic!("the table is [S, Dh]") };
        assert!(head_dim.is_multiple_of(8) && row.is_multiple_of(head_dim), "Dh {head_dim}, row {row}");
        assert!(tokens <= context, "{tokens} tokens in a context of {context}");
        tensors.expect(x, [tokens, row], DType::F32);
        tensors.expect(table, [context, head_dim], DType::F32);
        tensors.expect(position, [1], DType::U32);
        tensors.expect(out, [tokens, row], DType::F32);
        Self { x, table, position, out, tokens, heads: row / head_dim, head_dim, context }
    }
}

impl Kernel for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        vec![fragment!("rope.wgsl")]
    }

    fn operands(&self) -> Vec<Operand> {
        let inputs = [self.x, self.table, self.position].map(Operand::read);
        inputs.into_iter().chain([Operand::write(self.out)]).collect()
    }

    fn dispatch(&self, _tier: Tier) -> Dispatch {
        let rotations = self.tokens * self.heads * self.head_dim / 8;
        let params = Params {
            rotations: dim(rotations),
            half: dim(self.head_dim / 8),
            heads: dim(self.heads),
            tokens: dim(self.tokens),
            context: dim(self.context),
        };
        Dispatch {
            overrides: vec![("WG", WG as f64)],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(rotations.div_ceil(WG)), 1, 1],
        }
    }

    fn cost(&self) -> Cost {
        let n = (self.tokens * self.heads * self.head_dim) as u64;
        Cost { bytes: 8 * n + 4 * (self.tokens * self.head_dim) as u64, flops: 3 * n }
    }

    fn reference(&self, memory: &mut Memory) {
        let position = memory.read(self.position)[0] as usize;
        let half = self.head_dim / 2;
        memory.update(self.out, |memory, out| {
            let (x, table) = (memory.read(self.x), memory.read(self.table));
            for t in 0..self.tokens {
                for h in 0..self.heads {
                    for j in 0..half {
                        let cos = table[(position + t) * self.head_dim + j];
                        let sin = table[(position + t) * self.head_dim + half + j];
                        let a = (t * self.heads + h) * self.head_dim + j;
                        out[a] = x[a] * cos - x[a + half] * sin;
                        out[a + half] = x[a + half] * cos + x[a] * sin;
                    }
                }
            }
        });
    }
}

/// Real heads at the first, a middle and the last position.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, tokens: usize, heads: usize, head_dim: usize, [position, context]: [usize; 2]| {
        let mut case = CaseBuilder::new(format!("{label}, T {tokens}, heads {heads}, Dh {head_dim}")).benched();
        let x = case.tensor("x", [tokens, heads * head_dim], DType::F32, Fill::Uniform(2.0));
        let angle = |i: usize| (i / head_dim) as f64 * 1e4f64.powf(-((i % (head_dim / 2)) as f64) * 2.0 / head_dim as f64);
        let cos_sin = |i: usize| if i % head_dim < head_dim / 2 { angle(i).cos() } else { angle(i).sin() };
        let table = Fill::Values((0..context * head_dim).map(cos_sin).collect());
        let table = case.tensor("table", [context, head_dim], DType::F32, table);
        let position = case.tensor("position", [1], DType::U32, Fill::Values(vec![position as f64]));
        let out = case.tensor("out", [tokens, heads * head_dim], DType::F32, Fill::Zero);
        let kernel = Rope::new(&case.tensors, x, table, position, out);
        case.build(kernel, 1e-13, "table and products rounded to f32")
    };
    vec![
        case("first position", 1, 15, 64, [0, 16]),
        case("last position", 1, 30, 128, [2047, 2048]),
        case("prefill from the start", 33, 25, 64, [0, 64]),
        case("prefill to the last slot", 5, 9, 32, [32, 37]),
    ]
}
