//! Functions that several references share: f64, plain loops.

/// Returns the dot product of two rows.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Returns a row times the gains of its columns, scaled to unit root mean square.
pub(super) fn rms_norm(x: &[f64], gains: &[f64], eps: f32) -> Vec<f64> {
    let mean = dot(x, x) / x.len() as f64;
    let factor = 1.0 / (mean + f64::from(eps)).sqrt();
    x.iter().zip(gains).map(|(x, gain)| x * gain * factor).collect()
}

/// Returns `silu(gate) * up`.
pub(super) fn swiglu(gate: f64, up: f64) -> f64 {
    gate / (1.0 + (-gate).exp()) * up
}

/// Returns a head rotated by a row of the RoPE table: cosines, then sines.
pub(super) fn rotate(x: &[f64], table: &[f64]) -> Vec<f64> {
    let half = x.len() / 2;
    let mut out = vec![0.0; x.len()];
    for j in 0..half {
        let (cos, sin) = (table[j], table[half + j]);
        out[j] = x[j] * cos - x[half + j] * sin;
        out[half + j] = x[half + j] * cos + x[j] * sin;
    }
    out
}
