//! Published names of the weights, and which of them a model has with which sizes.

use super::config::Config;

/// Name of the embedding `[V, D]`, which is also the head.
pub const EMBEDDING: &str = "transformer.token_embeddings.weight";
/// Name of the norm `[D]` before the head.
pub const NORM: &str = "transformer.norm.weight";

macro_rules! layer_names {
    ($($(#[$doc:meta])* $name:ident = $part:literal;)*) => {$(
        $(#[$doc])*
        pub fn $name(layer: usize) -> String {
            format!(concat!("transformer.layers.{}.", $part, ".weight"), layer)
        }
    )*};
}

layer_names! {
    /// Returns the name of the norm `[D]` before attention.
    attn_norm = "attn_norm";
    /// Returns the name of the projection to q, k and v, `[(H + 2 Hkv) * Dh, D]`.
    qkv_proj = "attn.qkv_proj";
    /// Returns the name of the norm `[Dh]` of every query head.
    q_norm = "attn.q_norm";
    /// Returns the name of the norm `[Dh]` of every key head.
    k_norm = "attn.k_norm";
    /// Returns the name of the projection of the heads back to the residual stream, `[D, H * Dh]`.
    out_proj = "attn.out_proj";
    /// Returns the name of the norm `[D]` before the feed-forward part.
    ffn_norm = "ffn_norm";
    /// Returns the name of the projection to gate (first `F` rows) and up, `[2 F, D]`.
    proj_1 = "ffn.proj_1";
    /// Returns the name of the projection back to the residual stream, `[D, F]`.
    proj_2 = "ffn.proj_2";
}

/// Returns every weight of a model as `(name, rows, cols)`, in the order of use; a norm has one row.
pub fn all(config: &Config) -> Vec<(String, usize, usize)> {
    let (d, dh) = (config.model_dim, config.head_dim);
    let mut weights = vec![(EMBEDDING.to_owned(), config.vocab_size, d)];
    for (i, layer) in config.layers.iter().enumerate() {
        weights.extend([
            (attn_norm(i), 1, d),
            (qkv_proj(i), layer.qkv_rows(dh), d),
            (q_norm(i), 1, dh),
            (k_norm(i), 1, dh),
            (out_proj(i), d, layer.query_heads * dh),
            (ffn_norm(i), 1, d),
            (proj_1(i), 2 * layer.ffn_dim, d),
            (proj_2(i), d, layer.ffn_dim),
        ]);
    }
    weights.push((NORM.to_owned(), 1, d));
    weights
}

/// Returns whether a weight is a norm, stored with one dimension.
pub fn is_norm(name: &str) -> bool {
    name.ends_with("norm.weight")
}

/// Returns the published form of a name: CoreNet and Apple's MLX files lack the `transformer.` prefix.
pub(crate) fn canonical(name: &str) -> String {
    let bare = ["token_embeddings.", "layers.", "norm."].iter().any(|start| name.starts_with(start));
    if bare { format!("transformer.{name}") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Size;

    #[test]
    fn parameter_totals_are_the_published_ones() {
        for (size, total) in [
            (Size::M270, 271_527_168),
            (Size::M450, 457_179_136),
            (Size::B1_1, 1_079_891_456),
            (Size::B3, 3_036_647_424),
        ] {
            let weights = all(&Config::published(size));
            assert_eq!(weights.iter().map(|(_, rows, cols)| rows * cols).sum::<usize>(), total, "{size}");
        }
    }
}
