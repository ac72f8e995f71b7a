//! The output bits of a case, with chosen values of its tunables, and their errors.

use samara::gpu::{Bindings, BufferRange, Executor, Gpu, Tuned, Tuning, pack_values};
use samara::instruments::check::nmse;
use samara::kernels::{Case, Choice, Kernel};
use samara::tensor::TensorId;

/// Makes the device run this kernel, and no other, with these values.
pub fn tune(gpu: &mut Gpu, kernel: &dyn Kernel, choice: &Choice) {
    let source = gpu.shaders().source(&kernel.source(gpu.tier()));
    let mut tuning = Tuning::default();
    tuning.insert(Tuned::new(kernel, gpu.tier(), &source, choice));
    gpu.set_tuning(tuning);
}

/// The planes of each tensor, by its number.
pub struct Planes(pub Vec<Vec<BufferRange>>);

impl Bindings for Planes {
    fn ranges(&self, tensor: TensorId) -> &[BufferRange] {
        &self.0[tensor.0 as usize]
    }
}

/// Uploads the tensors of a case.
pub fn upload(gpu: &Gpu, case: &Case) -> Planes {
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
    Planes(case.tensors.iter().map(upload).collect())
}

/// Runs a case and returns each row of its first output as bits.
pub fn run(gpu: &Gpu, case: &Case) -> Vec<Vec<u8>> {
    run_for(gpu, case, case.outputs()[0])
}

/// Runs a case and returns each row of one of its outputs as bits.
pub fn run_for(gpu: &Gpu, case: &Case, out: TensorId) -> Vec<Vec<u8>> {
    let planes = upload(gpu, case);
    Executor::new(gpu, [("case", &*case.kernel)].into_iter(), &planes).unwrap().run(gpu);
    let bytes = gpu.read(&planes.ranges(out)[0]).unwrap();
    bytes.chunks(4 * case.tensors[out].shape.last()).map(<[u8]>::to_vec).collect()
}

/// Runs a case and returns the NMSE of each row of its first output.
pub fn errors(gpu: &Gpu, case: &Case) -> Vec<f64> {
    let mut memory = case.memory();
    case.kernel.reference(&mut memory);
    let out = case.outputs()[0];
    let rows = run(gpu, case);
    let expected = memory.read(out).chunks(case.tensors[out].shape.last());
    assert!(!rows.is_empty() && rows.len() == expected.len());
    rows.iter().zip(expected).map(|(row, expected)| nmse(&floats(row), expected)).collect()
}

/// Returns f32 values from their bits.
pub fn floats(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect()
}
