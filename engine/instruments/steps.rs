//! Cases from the operations of a model's steps: kernels are tuned for what the model runs.

use super::tune::tunable;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::graph::Op;
use crate::kernels::{Access, Case, Entry, Fill};
use crate::model::shape::StepShape;
use crate::model::{Checkpoint, synth};
use crate::session::{LoadOptions, Model};
use crate::tensor::{DType, TensorDesc, TensorId, Tensors};

/// Tokens cached before the decode step: a quarter of OpenELM's context, as in the kernels' own cases.
const DECODE_POSITION: usize = 511;

/// Returns a case for every tunable kernel and shape of a decode step and of the steps that prefill `prompt`
/// tokens; the model is not loaded.
///
/// # Errors
/// When the prompt does not fit the context, or the checkpoint cannot be read.
pub fn cases(checkpoint: &Checkpoint, gpu: &Gpu, options: &LoadOptions, prompt: usize) -> Result<Vec<Case>> {
    let context = checkpoint.config().max_context_length;
    if prompt > context {
        return Err(Error::Input(format!("a prompt of {prompt} tokens exceeds the context of {context}")));
    }
    let chunk = options.chunk(gpu, checkpoint).max(1);
    let mut steps = vec![1, prompt.min(chunk), prompt % chunk];
    steps.retain(|&tokens| tokens > 0);
    steps.sort_unstable();
    steps.dedup();
    let mut cases = Vec::new();
    for tokens in steps {
        let shape = StepShape::greedy(tokens, context, options.kv.dtype());
        let (tensors, ops) = Model::graph(checkpoint, gpu, options, shape)?.into_parts();
        let position = if tokens == 1 { DECODE_POSITION.min(context - 1) } else { 0 };
        let vocab = checkpoint.config().vocab_size;
        cases
            .extend(tunable(ops, |op| &*op.kernel).into_iter().map(|op| case(op, &tensors, position, vocab)));
    }
    Ok(tunable(cases, |case| &*case.kernel))
}

/// Makes a case of one operation.
fn case(op: Op, tensors: &Tensors, position: usize, vocab: usize) -> Case {
    let Op { label, kernel } = op;
    let access = |id: TensorId| kernel.operands().iter().find(|o| o.tensor == id).map(|o| o.access);
    let fill = |(id, desc): (TensorId, &TensorDesc)| match (access(id), desc.dtype) {
        (None | Some(Access::Write), _) => Fill::Zero,
        (_, DType::U32) if desc.name == "position" => Fill::Values(vec![position as f64]),
        (_, DType::U32) => {
            Fill::Values(synth::prompt(vocab, desc.shape.elements()).into_iter().map(f64::from).collect())
        }
        _ => Fill::Uniform(1.0),
    };
    let seed = label.bytes().fold(0u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    Case {
        seed,
        fills: tensors.iter().map(fill).collect(),
        tensors: tensors.clone(),
        tolerance: tolerance(kernel.name()),
        reason: "as much as a benched case of the kernel may be off",
        bench: true,
        label,
        kernel,
    }
}

/// Returns the largest error that a benched case of a kernel may have.
fn tolerance(kernel: &str) -> f64 {
    let entry = Entry::named(kernel);
    let cases = entry.map_or_else(Vec::new, |entry| entry.cases());
    cases.iter().filter(|case| case.bench).map(|case| case.tolerance).fold(0.0, f64::max)
}
