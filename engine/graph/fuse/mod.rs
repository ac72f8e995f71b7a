//! Named rewrite rules: each replaces primitive operations by a fused kernel with the same result.
//!
//! Every rule can be switched off, so that its gain can be measured on any GPU.

mod add_rms_norm;
mod matmul_swiglu;
mod matvec_add;
mod norm_matvec;
mod qk_norm_rope;
mod qk_norm_rope_attention;

use std::any::Any;
use std::fmt;

use crate::error::{Error, Result};
use crate::graph::{Graph, Op, kernel, norms};
use crate::tensor::TensorId;

/// A rewrite of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Gate and up projections, SiLU and their product.
    MatmulSwiglu,
    /// RMSNorm and the products that follow it, of a few tokens or in tiles, gated ones included.
    NormMatvec,
    /// A product, of a few tokens or in tiles, and the residual add that follows it.
    MatvecAdd,
    /// Residual add and the RMSNorm that follows it, where the two rules before are off and leave both.
    AddRmsNorm,
    /// q/k norm, RoPE, the write to the KV cache and attention of a few rows.
    QkNormRopeAttention,
    /// q/k norm, RoPE and the write to the KV cache, where attention is a separate kernel.
    QkNormRope,
}

impl Rule {
    /// Every rule, in the order in which they are applied.
    pub const ALL: [Self; 6] = [
        Self::MatmulSwiglu,
        Self::NormMatvec,
        Self::MatvecAdd,
        Self::AddRmsNorm,
        Self::QkNormRopeAttention,
        Self::QkNormRope,
    ];

    /// Applies the rule wherever it matches.
    fn apply(self, graph: &mut Graph) {
        match self {
            Self::MatmulSwiglu => matmul_swiglu::apply(graph),
            Self::NormMatvec => norm_matvec::apply(graph),
            Self::MatvecAdd => matvec_add::apply(graph),
            Self::AddRmsNorm => add_rms_norm::apply(graph),
            Self::QkNormRopeAttention => qk_norm_rope_attention::apply(graph),
            Self::QkNormRope => qk_norm_rope::apply(graph),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::MatmulSwiglu => "matmul-swiglu",
            Self::NormMatvec => "norm-matvec",
            Self::MatvecAdd => "matvec-add",
            Self::AddRmsNorm => "add-rms-norm",
            Self::QkNormRopeAttention => "qk-norm-rope-attention",
            Self::QkNormRope => "qk-norm-rope",
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

    /// Switches off a rule by its name, or every rule with `all`. `rms-norm`, which `all` does not include,
    /// switches off RMSNorm as one kernel: see [`with_naive_norms`](Self::with_naive_norms).
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

    /// Computes every norm as naive framework code does: a chain of elementary kernels. The rules that fuse a
    /// norm then match nothing.
    pub fn with_naive_norms(mut self) -> Self {
        self.naive_norms = true;
        self
    }

    /// Returns the rules that are on.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Returns the names of all that is off, as [`without`](Self::without) takes them.
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

    /// Replaces the first of `replaced` by a fused operation and drops the others.
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
