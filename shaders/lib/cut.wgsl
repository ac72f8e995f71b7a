// Cuts a row off after its likeliest candidates without sorting. A histogram over the distance to the maximum
// finds the bin in which the running sum of counts or weights reaches its goal. If the bin holds over 256
// candidates, histograms over the digits of keys and ids narrow it down; the remaining ones are compared pairwise.
// The including kernel declares bindings and workgroup memory, and defines `Scale`, `distance_to` and `weight`.

const BINS = 256u;
const GROUPS = 16u; // of 16 bins each

// What is summed, and its goal.
const COUNT = 0u; // candidates: top_k
const SHARE = 1u; // weights: top_p of their total
const DRAW = 2u; // weights: more than a random share of their total

struct Found {
    bin: u32, // where the sum reaches the goal; NONE if it does not
    count: u32, // candidates in that bin
    goal: vec2<u32>, // what is left of the goal within it
}

// The digits found so far, under masks; candidates on the path have all of them.
struct Path {
    bucket_mask: u32,
    bucket: u32,
    key_mask: u32,
    key: u32,
    id_mask: u32,
    id: u32,
}

fn kept(last: vec2<u32>, key: u32, id: u32) -> bool {
    return key > last.x || (key == last.x && id <= last.y);
}

// The bin of a candidate at a level, the likeliest first: by distance, by each byte of the key, then by the
// upper byte of the id.
fn digit(level: u32, bucket: u32, key: u32, id: u32) -> u32 {
    if level == 0u {
        return bucket;
    }
    if level == 5u {
        return id >> 8u;
    }
    return (~key >> (32u - 8u * level)) & 255u;
}

// The path extended by a bin.
fn narrowed(path: Path, level: u32, bin: u32) -> Path {
    var next = path;
    if level == 0u {
        next.bucket_mask = 255u;
        next.bucket = bin;
    } else if level == 5u {
        next.id_mask = 0xffffff00u;
        next.id = bin << 8u;
    } else {
        next.key_mask |= 255u << (32u - 8u * level);
        next.key |= (255u - bin) << (32u - 8u * level);
    }
    return next;
}

// What a candidate adds to the sum, and its bucket; zeros if it is cut off or not on the path.
fn measured(path: Path, last: vec2<u32>, measure: u32, scale: Scale, key: u32, id: u32) -> vec2<u32> {
    if key < last.x || (key == last.x && id > last.y) {
        return vec2<u32>(0u);
    }
    let distance = distance_to(scale, key);
    let bucket = min(u32(distance * 11.5), 255u);
    let off = ((bucket ^ path.bucket) & path.bucket_mask) | ((key ^ path.key) & path.key_mask)
        | ((id ^ path.id) & path.id_mask);
    // Beyond 22.2 all weights are 0.
    if off != 0u || distance > 22.2 {
        return vec2<u32>(0u);
    }
    if measure == COUNT {
        return vec2<u32>(1u, bucket);
    }
    return vec2<u32>(weight(distance), bucket);
}

fn tally(path: Path, level: u32, last: vec2<u32>, measure: u32, scale: Scale, key: u32, id: u32) {
    let own = measured(path, last, measure, scale, key, id);
    if own.x > 0u {
        let bin = digit(level, own.y, key, id);
        atomicAdd(&counts[bin], 1u);
        if measure != COUNT {
            atomicAdd(&lower[bin], own.x & 0xffffu);
            atomicAdd(&upper[bin], own.x >> 16u);
        }
    }
}

fn enlist(path: Path, last: vec2<u32>, measure: u32, scale: Scale, key: u32, id: u32) {
    let own = measured(path, last, measure, scale, key, id);
    if own.x > 0u {
        let slot = atomicAdd(&listed, 1u);
        if slot < BINS {
            list[slot] = vec3<u32>(key, id, own.x);
        }
    }
}

fn bin_sum(bin: u32, measure: u32) -> vec2<u32> {
    if measure == COUNT {
        return vec2<u32>(0u, atomicLoad(&counts[bin]));
    }
    let halves = atomicLoad(&upper[bin]);
    return wide_add(vec2<u32>(halves >> 16u, halves << 16u), vec2<u32>(0u, atomicLoad(&lower[bin])));
}

// The goal of a sum whose total is `total`.
fn goal_of(measure: u32, total: vec2<u32>, draw: u32, table: u32) -> vec2<u32> {
    if measure == COUNT {
        return vec2<u32>(0u, options[table].top_k);
    }
    if measure == SHARE {
        return wide_share(total, options[table].top_p, true);
    }
    return wide_add(wide_share(total, draw, false), vec2<u32>(0u, 1u));
}

// The bin in which the sum reaches its goal: that of `measure` the first time, then what is left of it. Every
// invocation must call, once it has written its bins, and gets the result.
fn find(index: u32, first: bool, measure: u32, draw: u32, table: u32) -> Found {
    workgroupBarrier();
    if index < GROUPS {
        var sum = vec2<u32>(0u);
        for (var i = 0u; i < BINS / GROUPS; i++) {
            sum = wide_add(sum, bin_sum(index * (BINS / GROUPS) + i, measure));
        }
        groups[index] = sum;
    }
    workgroupBarrier();
    if index == 0u {
        var total = vec2<u32>(0u);
        for (var i = 0u; i < GROUPS; i++) {
            total = wide_add(total, groups[i]);
        }
        var left = found.goal;
        if first {
            left = goal_of(measure, total, draw, table);
        }
        var bin = NONE;
        if !wide_less(total, left) {
            var group = 0u;
            while group < GROUPS - 1u && wide_less(groups[group], left) {
                left = wide_sub(left, groups[group]);
                group++;
            }
            bin = group * (BINS / GROUPS);
            let end = bin + BINS / GROUPS - 1u;
            while bin < end && wide_less(bin_sum(bin, measure), left) {
                left = wide_sub(left, bin_sum(bin, measure));
                bin++;
            }
        }
        found = Found(bin, atomicLoad(&counts[min(bin, BINS - 1u)]), left);
    }
    return workgroupUniformLoad(&found);
}

fn clear_bins(index: u32) {
    for (var bin = index; bin < BINS; bin += WG) {
        atomicStore(&upper[bin], 0u);
        atomicStore(&lower[bin], 0u);
        atomicStore(&counts[bin], 0u);
    }
    workgroupBarrier();
}

// Returns the last candidate, from the likeliest down, that the goal of a measure needs; `last` if it needs all.
fn cut_off(index: u32, base: u32, last: vec2<u32>, measure: u32, scale: Scale) -> vec2<u32> {
    let vectors = (params.vocabulary + 3u) / 4u;
    var path = Path(0u, 0u, 0u, 0u, 0u, 0u);
    var goal = vec2<u32>(0u);
    for (var level = 0u; level < 6u; level++) {
        clear_bins(index);
        for (var i = index; i < vectors; i += WG) {
            let four = scratch[base + i];
            tally(path, level, last, measure, scale, four.x, i * 4u);
            tally(path, level, last, measure, scale, four.y, i * 4u + 1u);
            tally(path, level, last, measure, scale, four.z, i * 4u + 2u);
            tally(path, level, last, measure, scale, four.w, i * 4u + 3u);
        }
        let next = find(index, level == 0u, measure, 0u, scale.table);
        if next.bin == NONE {
            return last;
        }
        path = narrowed(path, level, next.bin);
        goal = next.goal;
        if next.count <= BINS {
            break;
        }
    }
    if index == 0u {
        atomicStore(&listed, 0u);
        cut = last;
    }
    workgroupBarrier();
    for (var i = index; i < vectors; i += WG) {
        let four = scratch[base + i];
        enlist(path, last, measure, scale, four.x, i * 4u);
        enlist(path, last, measure, scale, four.y, i * 4u + 1u);
        enlist(path, last, measure, scale, four.z, i * 4u + 2u);
        enlist(path, last, measure, scale, four.w, i * 4u + 3u);
    }
    workgroupBarrier();
    rank(index, goal);
    return workgroupUniformLoad(&cut);
}

// For each listed candidate, sums those that are likelier; cuts after the one that reaches the goal.
fn rank(index: u32, goal: vec2<u32>) {
    let size = min(atomicLoad(&listed), BINS);
    for (var i = index; i < size; i += WG) {
        let own = list[i];
        var sum = vec2<u32>(0u);
        for (var j = 0u; j < size; j++) {
            if j != i && kept(own.xy, list[j].x, list[j].y) {
                sum = wide_add(sum, vec2<u32>(0u, list[j].z));
            }
        }
        if wide_less(sum, goal) && !wide_less(wide_add(sum, vec2<u32>(0u, own.z)), goal) {
            cut = own.xy;
        }
    }
}
