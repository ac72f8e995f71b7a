//! Named rewrite rules: each replaces primitive operations by a fused kernel with the same result.
//!
//! Every rule can be switched off, so that what a fusion is worth can be measured on any card.

use std::any::Any;
use std::fmt;

use crate::error::{Error, Result};
use crate::graph::{Graph, Op, Role, kernel, norms};
use crate::kernels::Kernel;
use crate::kernels::add::Add;
use crate::kernels::add_rms_norm::AddRmsNorm;
use crate::kernels::attention::Attention;
use crate::kernels::attention_decode::AttentionDecode;
use crate::kernels::kv_write::KvWrite;
use crate::kernels::matmul::Matmul;
use crate::kernels::matmul_swiglu::MatmulSwiglu;
use crate::kernels::matvec::Matvec;
use crate::kernels::matvec_swiglu::MatvecSwiglu;
use crate::kernels::qk_norm::QkNorm;
use crate::kernels::qk_norm_rope::QkNormRope;
use crate::kernels::rms_norm::RmsNorm;
use crate::kernels::rope::Rope;
use crate::kernels::swiglu::Swiglu;
use crate::tensor::{DType, TensorId};

/// A rewrite of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Residual add and the RMSNorm that follows it.
    AddRmsNorm,
    /// q/k norm, RoPE and the write to the KV cache.
    QkNormRope,
    /// Gate and up projections, SiLU and their product.
    MatmulSwiglu,
}

impl Rule {
    /// Every rule, in the order in which they are applied.
    pub const ALL: [Self; 3] = [Self::AddRmsNorm, Self::QkNormRope, Self::MatmulSwiglu];

    /// Replaces every place where the rule fits.
    fn apply(self, graph: &mut Graph) {
        match self {
            Self::AddRmsNorm => add_rms_norm(graph),
            Self::QkNormRope => qk_norm_rope(graph),
            Self::MatmulSwiglu => matmul_swiglu(graph),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::AddRmsNorm => "add-rms-norm",
            Self::QkNormRope => "qk-norm-rope",
            Self::MatmulSwiglu => "matmul-swiglu",
        })
    }
}

/// The name by which RMSNorm itself is switched off.
const RMS_NORM: &str = "rms-norm";

/// The rules that are on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fusion {
    rules: Vec<Rule>,
    naive_norms: bool,
}

impl Fusion {
    /// Every rule on.
    pub fn all() -> Self {
        Self { rules: Rule::ALL.to_vec(), naive_norms: false }
    }

    /// Every rule off: the primitive graph.
    pub fn none() -> Self {
        Self { rules: Vec::new(), naive_norms: false }
    }

    /// Switches off a rule by its name, every rule by `all`, or by `rms-norm` what none of them touches:
    /// RMSNorm as one kernel, see [`with_naive_norms`](Self::with_naive_norms).
    ///
    /// # Errors
    /// When no rule has that name.
    pub fn without(self, name: &str) -> Result<Self> {
        match name {
            "all" => Ok(Self { rules: Vec::new(), ..self }),
            RMS_NORM => Ok(self.with_naive_norms()),
            _ => match Rule::ALL.into_iter().find(|rule| rule.to_string() == name) {
                Some(rule) => Ok(self.without_rule(rule)),
                None => {
                    let rules = Rule::ALL.map(|rule| rule.to_string()).join(", ");
                    Err(Error::Input(format!("fusion rule `{name}` is none of all, {rules}, {RMS_NORM}")))
                }
            },
        }
    }

    /// Switches a rule off.
    pub fn without_rule(mut self, off: Rule) -> Self {
        self.rules.retain(|rule| *rule != off);
        self
    }

    /// Computes every norm as naive framework code does: a chain of elementary kernels. The rules that take
    /// a norm into another kernel then find none.
    pub fn with_naive_norms(mut self) -> Self {
        self.naive_norms = true;
        self
    }

    /// Returns the rules that are on.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Returns the names of what is off, as [`without`](Self::without) takes them.
    pub fn off(&self) -> Vec<String> {
        let rules = Rule::ALL.iter().filter(|rule| !self.rules.contains(rule)).map(Rule::to_string);
        rules.chain(self.naive_norms.then(|| RMS_NORM.to_owned())).collect()
    }

    /// Applies the rules to a graph.
    pub fn apply(&self, graph: &mut Graph) {
        if self.naive_norms {
            norms::unfuse(graph);
        }
        self.rules.iter().for_each(|rule| rule.apply(graph));
    }
}

impl Default for Fusion {
    fn default() -> Self {
        Self::all()
    }
}

impl Graph {
    /// Returns the index and kernel of the one operation other than `producer` that binds `tensor`;
    /// `None` if there are more, or it is no `K`.
    fn only_user<K: Any>(&self, tensor: TensorId, producer: usize) -> Option<(usize, &K)> {
        let users: Vec<usize> = self.users(tensor).into_iter().filter(|&index| index != producer).collect();
        let &[user] = &users[..] else { return None };
        Some((user, kernel(&self.ops[user])?))
    }

    /// Puts a fused operation in the place of the first of `replaced` and drops the others.
    fn replace(&mut self, replaced: &[usize], fused: Op) {
        let first = replaced[0];
        self.ops[first] = fused;
        let mut index = 0;
        self.ops.retain(|_| {
            index += 1;
            index - 1 == first || !replaced.contains(&(index - 1))
        });
    }
}

/// `sum = a + b`, then `out = norm(sum)`: one pass over the row instead of two launches. The sum stays,
/// the next residual add reads it.
fn add_rms_norm(graph: &mut Graph) {
    let mut index = 0;
    while index < graph.ops.len() {
        if let Some((norm, fused)) = match_add_rms_norm(graph, index) {
            let label = graph.ops[norm].label.clone();
            graph.replace(&[index, norm], Op { label, kernel: Box::new(fused) });
        }
        index += 1;
    }
}

fn match_add_rms_norm(graph: &Graph, index: usize) -> Option<(usize, AddRmsNorm)> {
    let add = kernel::<Add>(&graph.ops[index])?;
    let reads_sum = |op: &Op| kernel::<RmsNorm>(op).is_some_and(|norm| norm.x == add.out);
    let norm_index = graph.ops.iter().position(reads_sum)?;
    let norm = kernel::<RmsNorm>(&graph.ops[norm_index])?;
    let tensors = graph.tensors();
    // The head normalises only the rows whose logits are wanted; the fused kernel takes all of them.
    (tensors[norm.out].shape == tensors[add.out].shape).then(|| {
        (norm_index, AddRmsNorm::new(tensors, add.a, add.b, norm.weight, add.out, norm.out, norm.eps))
    })
}

/// q/k norm, RoPE and cache write in one launch: q and k are read once and k goes straight to the cache.
fn qk_norm_rope(graph: &mut Graph) {
    let mut index = 0;
    while index < graph.ops.len() {
        fuse_qk_norm_rope_at(graph, index);
        index += 1;
    }
}

fn fuse_qk_norm_rope_at(graph: &mut Graph, index: usize) -> Option<()> {
    let norm = kernel::<QkNorm>(&graph.ops[index])?.clone();
    let (rope_index, rope) = graph.only_user::<Rope>(norm.out, index)?;
    let rope = rope.clone();
    let [_, write_index, attention_index] = graph.users(rope.out)[..] else { return None };
    let write = kernel::<KvWrite>(&graph.ops[write_index])?.clone();
    let mix = &graph.ops[attention_index];
    let decode = kernel::<AttentionDecode>(mix).map(|mix| mix.out);
    let out = decode.or(kernel::<Attention>(mix).map(|mix| mix.out))?;

    let shape = graph.tensors()[out].shape.clone();
    let name = graph.tensors()[norm.out].name.replace("qk_norm", "q");
    let q = graph.tensor(name, shape, DType::F32, Role::Activation);
    let tensors = graph.tensors();
    let fused = QkNormRope::new(
        tensors,
        norm.qkv,
        norm.q_weight,
        norm.k_weight,
        rope.table,
        rope.position,
        q,
        write.k_cache,
        write.v_cache,
        norm.eps,
    );
    let (k, v, position, heads) = (write.k_cache, write.v_cache, write.position, norm.query_heads);
    graph.ops[attention_index].kernel = if decode.is_some() {
        Box::new(AttentionDecode::new(tensors, q, k, v, position, out, heads))
    } else {
        Box::new(Attention::new(tensors, q, k, v, position, out, heads))
    };
    let label = graph.ops[index].label.clone() + "_rope";
    graph.replace(&[index, rope_index, write_index], Op { label, kernel: Box::new(fused) });
    Some(())
}

/// SiLU(gate) * up where the projection computes them: the `[T, 2F]` intermediate is never stored. A
/// projection split over several bindings stays as it is: its gate and up rows lie in different parts.
fn matmul_swiglu(graph: &mut Graph) {
    let mut index = 0;
    while index < graph.ops.len() {
        if let Some((swiglu, fused)) = match_matmul_swiglu(graph, index) {
            let label = graph.ops[swiglu].label.clone();
            graph.replace(&[index, swiglu], Op { label, kernel: fused });
        }
        index += 1;
    }
}

fn match_matmul_swiglu(graph: &Graph, index: usize) -> Option<(usize, Box<dyn Kernel>)> {
    let op = &graph.ops[index];
    let tensors = graph.tensors();
    let (x, weight, projected) = match (kernel::<Matvec>(op), kernel::<Matmul>(op)) {
        (Some(matvec), _) => (matvec.x, matvec.weight, matvec.out),
        (_, Some(matmul)) => (matmul.x, matmul.weight, matmul.out),
        _ => return None,
    };
    let (swiglu_index, swiglu) = graph.only_user::<Swiglu>(projected, index)?;
    let out = swiglu.out;
    let fused: Box<dyn Kernel> = if kernel::<Matvec>(op).is_some() {
        Box::new(MatvecSwiglu::new(tensors, x, weight, out))
    } else {
        Box::new(MatmulSwiglu::new(tensors, x, weight, out))
    };
    Some((swiglu_index, fused))
}
