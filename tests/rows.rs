//! What is computed for one token does not depend on how many others are computed with it, nor on what they
//! hold: bit for bit. Speculation and batches return the text of plain decoding because of that.

mod common;

use samara::gpu::{Bindings, BufferRange, Executor, Gpu, Tuned, Tuning, pack_values};
use samara::kernels::matvec::Matvec;
use samara::kernels::matvec_add::MatvecAdd;
use samara::kernels::matvec_swiglu::MatvecSwiglu;
use samara::kernels::norm_matvec::NormMatvec;
use samara::kernels::norm_matvec_swiglu::NormMatvecSwiglu;
use samara::kernels::{Case, CaseBuilder, Fill, Kernel, MOST_TOKENS};
use samara::quant::Format;
use samara::tensor::{DType, TensorId};

/// More columns than a workgroup takes at once, and rows that do not fill the last one.
const COLS: usize = 1056;
const ROWS: usize = 6;

const KERNELS: [&str; 5] = ["matvec", "matvec_add", "matvec_swiglu", "norm_matvec", "norm_matvec_swiglu"];

/// A kernel on some rows out of as many as can be, which follow from their numbers alone.
fn case(name: &str, format: Format, rows: &[usize]) -> Case {
    let mut case = CaseBuilder::new(format!("{name}, {format}"));
    let values = |width: usize| {
        let value = |row: usize, i: usize| (((row * 8191 + i * 127) % 1009) as f64 - 504.0) / 256.0;
        Fill::Values(rows.iter().flat_map(|&row| (0..width).map(move |i| value(row, i))).collect())
    };
    let x = case.tensor("x", [rows.len(), COLS], DType::F32, values(COLS));
    let weight = case.tensor("weight", [ROWS, COLS], format.dtype(), Fill::Uniform(0.1));
    let norm = case.tensor("norm", [COLS], DType::F32, Fill::Uniform(1.5));
    let residual = case.tensor("residual", [rows.len(), ROWS], DType::F32, values(ROWS));
    let gated = name.ends_with("swiglu");
    let width = if gated { ROWS / 2 } else { ROWS };
    let out = case.tensor("out", [rows.len(), width], DType::F32, Fill::Zero);
    let tensors = &case.tensors;
    match name {
        "matvec" => build(Matvec::new(tensors, x, weight, out, 0), case),
        "matvec_add" => build(MatvecAdd::new(tensors, residual, x, weight, out, 0), case),
        "matvec_swiglu" => build(MatvecSwiglu::new(tensors, x, weight, out), case),
        "norm_matvec" => build(NormMatvec::new(tensors, x, norm, weight, out, 0, 1e-6), case),
        "norm_matvec_swiglu" => build(NormMatvecSwiglu::new(tensors, x, norm, weight, out, 1e-6), case),
        other => panic!("{other}"),
    }
}

fn build(kernel: impl Kernel, case: CaseBuilder) -> Case {
    case.build(kernel, 0.0, "bits")
}

/// The planes of each tensor of a case.
struct Buffers(Vec<Vec<BufferRange>>);

impl Bindings for Buffers {
    fn ranges(&self, tensor: TensorId) -> &[BufferRange] {
        &self.0[tensor.0 as usize]
    }
}

/// Runs a case and returns each row of its output as bits.
fn run(gpu: &Gpu, case: &Case) -> Vec<Vec<u8>> {
    let memory = case.memory();
    let upload = |(id, desc)| {
        let planes = if case.access(id).is_some() { pack_values(desc, memory.read(id)) } else { Vec::new() };
        let store = |plane: &Vec<u8>| {
            let range = gpu.storage("case", plane.len() as u64).unwrap();
            gpu.write(&range, 0, plane);
            range
        };
        planes.iter().map(store).collect()
    };
    let buffers = Buffers(case.tensors.iter().map(upload).collect());
    Executor::new(gpu, [("case", &*case.kernel)].into_iter(), &buffers).unwrap().run(gpu);
    let out = case.outputs()[0];
    let bytes = gpu.read(&buffers.ranges(out)[0]).unwrap();
    bytes.chunks(4 * case.tensors[out].shape.last()).map(<[u8]>::to_vec).collect()
}

fn check(gpu: &Gpu, name: &str, format: Format) {
    let alone = |row: usize| run(gpu, &case(name, format, &[row])).remove(0);
    let expected: Vec<Vec<u8>> = (0..9).map(alone).collect();
    assert!(expected.windows(2).all(|pair| pair[0] != pair[1]), "rows differ");
    for tokens in [2, 3, 4, 5, 7, 8, 9, MOST_TOKENS] {
        // At places of their own among others: backwards, from the end of the first nine.
        let rows: Vec<usize> = (0..tokens).map(|t| (MOST_TOKENS + 8 - t) % MOST_TOKENS).collect();
        let found = run(gpu, &case(name, format, &rows));
        for (place, &row) in rows.iter().enumerate().filter(|(_, row)| **row < expected.len()) {
            assert_eq!(found[place], expected[row], "{name}, {format}, row {row} at {place} of {tokens}");
        }
    }
}

#[test]
fn a_row_is_the_same_alone_and_among_others() {
    let Some(gpu) = common::gpu() else { return };
    for format in Format::ALL {
        KERNELS.into_iter().for_each(|name| check(&gpu, name, format));
    }
}

#[test]
fn a_row_is_the_same_without_subgroups_and_with_another_workgroup() {
    for mut gpu in common::gpus() {
        let kernel = case("norm_matvec", Format::Q8_0, &[0]).kernel;
        let values = kernel.tunables().remove(0).values;
        for wg in [values[0], values[values.len() - 1]] {
            let choice = [("WG".to_owned(), wg)].into_iter().collect();
            let source = gpu.shaders().source(&kernel.source(gpu.tier()));
            let mut tuning = Tuning::default();
            tuning.insert(Tuned::new(&*kernel, gpu.tier(), &source, &choice));
            gpu.set_tuning(tuning);
            check(&gpu, "norm_matvec", Format::Q8_0);
        }
    }
}
