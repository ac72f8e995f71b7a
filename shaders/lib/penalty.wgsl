// The repeat penalty of sample.wgsl: which tokens occurred before in a row's sequence, and what they lose for it.
// sample.wgsl has the bindings.

const MOST = 3.4e38; // limit of a penalised logit

// The options of a row.
fn table_of(row: u32) -> u32 {
    return select(0u, row, MODE == BATCH);
}

// Where the row's sequence begins in `last_seen`.
fn seen_from(row: u32) -> u32 {
    if MODE == BATCH {
        return min(position[2u * row + 1u], params.slots - 1u) * params.vocabulary;
    }
    return 0u;
}

// Which of four ids are among the tokens up to the row's, within the window: `last_seen` has no draft tokens.
fn drafted(lanes: vec4<u32>, row: u32, window: u32) -> vec4<bool> {
    var found = vec4<bool>(false);
    if MODE == DRAFTED {
        for (var i = row + 1u - min(row, window); i <= row; i++) {
            found = found | (lanes == vec4<u32>(ids[i]));
        }
    }
    return found;
}

// Whether four ids occurred within the window before the token at `next`.
fn occurred(first: u32, row: u32, next: u32) -> vec4<bool> {
    let lanes = vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u);
    let at = vec4<u32>(seen_from(row)) + min(lanes, vec4<u32>(params.vocabulary - 1u));
    let seen = vec4<u32>(last_seen[at.x], last_seen[at.y], last_seen[at.z], last_seen[at.w]);
    let wanted = options[table_of(row)].window;
    let window = select(wanted, next, wanted == 0u || wanted > next);
    return (seen > vec4<u32>(next - window)) | drafted(lanes, row, window);
}

// Records the token that a row chose. That of a draft row may still be rejected.
fn note(row: u32, id: u32, next: u32) {
    if MODE != DRAFTED && id < params.vocabulary {
        last_seen[seen_from(row) + id] = next + 1u;
    }
}

fn penalized(value: f32, penalty: f32) -> f32 {
    if value > 0.0 {
        if penalty < 1.0 && value >= MOST * penalty {
            return MOST;
        }
        return value / penalty;
    }
    if penalty > 1.0 && -value >= MOST / penalty {
        return -MOST;
    }
    return value * penalty;
}

fn penalized_keys(bits: vec4<u32>, penalty: f32) -> vec4<u32> {
    let values = bitcast<vec4<f32>>(bits);
    let lowered = vec4<f32>(
        penalized(values.x, penalty),
        penalized(values.y, penalty),
        penalized(values.z, penalty),
        penalized(values.w, penalty),
    );
    return keys(bitcast<vec4<u32>>(lowered));
}
