//! `out[t, :] = E[ids[t] - row0, :]`: the embedding lookup, in every weight format. Rows whose id is outside
//! the bound part of the table are not written.

use bytemuck::{Pod, Zeroable};

use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment, weight_fragment};
use crate::quant::Format;
use crate::tensor::{DType, TensorId, Tensors};

/// Embedding lookup.
#[derive(Clone, Debug)]
pub struct Embed {
    /// Token ids, `[T]` u32.
    pub ids: TensorId,
    /// Rows `row0..` of the table, `[rows, D]` in any weight format.
    pub weight: TensorId,
    /// Embeddings, `[T, D]` f32.
    pub out: TensorId,
    /// First row of the weight in the whole table.
    pub row0: usize,
    format: Format,
    tokens: usize,
    rows: usize,
    model_dim: usize,
    whole: bool,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    chunks: u32,
    cols: u32,
    rows: u32,
    row0: u32,
}

const _: () = assert!(size_of::<Params>() == 16);

impl Embed {
    /// Returns the lookup of `ids` in rows `row0..` of a table of `vocab` rows.
    ///
    /// # Panics
    /// When shapes do not fit, `D` is no multiple of 32 or the weight has no weight format.
    pub fn new(
        tensors: &Tensors,
        ids: TensorId,
        weight: TensorId,
        out: TensorId,
        row0: usize,
        vocab: usize,
    ) -> Self {
        let &[rows, model_dim] = tensors[weight].shape.dims() else { panic!("a table is [rows, D]") };
        let format = Format::of(tensors[weight].dtype).expect("a weight has a weight format");
        let tokens = tensors[ids].shape.elements();
        assert!(model_dim.is_multiple_of(32) && row0 + rows <= vocab, "D {model_dim}, V {vocab}");
        tensors.expect(ids, [tokens], DType::U32);
        tensors.expect(out, [tokens, model_dim], DType::F32);
        Self { ids, weight, out, row0, format, tokens, rows, model_dim, whole: rows == vocab }
    }
}

impl Kernel for Embed {
    fn name(&self) -> &'static str {
        "embed"
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        vec![fragment!("embed.wgsl"), weight_fragment(self.format)]
    }

    fn operands(&self) -> Vec<Operand> {
        let out = if self.whole { Operand::write(self.out) } else { Operand::read_write(self.out) };
        vec![Operand::read(self.ids), out, Operand::weight(self.weight)]
    }

    fn shape(&self) -> String {
        format!("T {}, D {}, {}", self.tokens, self.model_dim, self.format)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(64)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let wg = choice.of(&self.tunables()[0]);
        let chunks = self.tokens * self.model_dim / 16;
        let params = Params {
            chunks: dim(chunks),
            cols: dim(self.model_dim),
            rows: dim(self.rows),
            row0: dim(self.row0),
        };
        Dispatch {
            overrides: vec![("WG", f64::from(wg))],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(chunks.div_ceil(wg as usize)), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        Cost {
            read: self.format.bytes(self.tokens, self.model_dim) + 4 * self.tokens as u64,
            written: 4 * (self.tokens * self.model_dim) as u64,
            flops: 0,
        }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (ids, weight) = (memory.read(self.ids), memory.read(self.weight));
            for (t, out) in out.chunks_mut(self.model_dim).enumerate() {
                let id = ids[t] as usize;
                if id >= self.row0 && id < self.row0 + self.rows {
                    let row = (id - self.row0) * self.model_dim;
                    out.copy_from_slice(&weight[row..row + self.model_dim]);
                }
            }
        });
    }
}

/// One token and a prefill in every format, and tables of which only a part is bound.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, format: Format, ids: &[u32], [rows, model_dim]: [usize; 2], [row0, vocab]: [usize; 2]| {
        let label = format!("{label}, T {}, {rows} x {model_dim} at {row0} of {vocab}, {format}", ids.len());
        let mut case = CaseBuilder::new(label).benched(true);
        let values = ids.iter().map(|&id| f64::from(id)).collect();
        let ids = case.tensor("ids", [ids.len()], DType::U32, Fill::Values(values));
        let weight = case.tensor("weight", [rows, model_dim], format.dtype(), Fill::Uniform(1.0));
        let out = case.tensor("out", [case.tensors[ids].shape.elements(), model_dim], DType::F32, Fill::Uniform(1.0));
        let kernel = Embed::new(&case.tensors, ids, weight, out, row0, vocab);
        match format {
            Format::Q8_0 | Format::Q4_0 => case.build(kernel, 1e-14, "one f32 product"),
            _ => case.build(kernel, 1e-14, "values are copied; those of other rows were rounded to f32"),
        }
    };
    let mut cases = Vec::new();
    for format in Format::ALL {
        cases.push(case("decode", format, &[299], [300, 1280], [0, 300]));
        cases.push(case("prefill", format, &[0, 7, 7, 31, 16, 30], [32, 192], [0, 32]));
        cases.push(case("half a scale word", format, &[2, 0, 1], [3, 96], [0, 3]));
        cases.push(case("a middle part", format, &[4, 5, 6, 7, 8, 0, 19], [3, 64], [5, 20]));
        cases.push(case("ids beyond the table", format, &[u32::MAX, 1 << 31, 20], [20, 32], [0, 40]));
    }
    cases
}
