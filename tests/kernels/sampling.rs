//! The kernel `sample` against the sampler on the CPU: the same tokens for the same logits, seeds and positions,
//! and draws that follow the probabilities.

use crate::common;
use crate::common::outputs::Planes;
use samara::gpu::{Bindings, Executor, Gpu};
use samara::kernels::draw::{Options, last_seen};
use samara::kernels::{Sample, SampleBinds, TokenState, random, scratch_shape};
use samara::sampler::{Sampler, SamplerOptions};
use samara::tensor::{DType, TensorId, Tensors};

/// Rows that one dispatch draws by.
const ROWS: usize = 64;
/// Dispatches of a statistical test: more than 20000 draws.
const DISPATCHES: usize = 320;
/// No id of any vocabulary here.
const NOWHERE: u32 = 1 << 20;

/// The kernel with its tensors on the device.
struct OnDevice<'a> {
    gpu: &'a Gpu,
    binds: SampleBinds,
    bound: Planes,
    executor: Executor,
}

impl<'a> OnDevice<'a> {
    /// Draws by the last row with a history of `context`, or by every row without one.
    fn new(gpu: &'a Gpu, rows: usize, logits: &[f32], context: Option<usize>) -> Self {
        let vocabulary = logits.len() / rows;
        let mut tensors = Tensors::default();
        let counting = if context.is_some() { 1 } else { rows };
        let binds = SampleBinds {
            logits: tensors.add("logits", [rows, vocabulary], DType::F32),
            options: tensors.add("options", [Options::WORDS], DType::U32),
            last_seen: tensors.add("last_seen", [vocabulary], DType::U32),
            state: TokenState {
                ids: tensors.add("ids", [rows], DType::U32),
                position: tensors.add("position", [1], DType::U32),
                out: tensors.add("out", [context.map_or(rows, |context| context + 1)], DType::U32),
            },
            scratch: tensors.add("scratch", scratch_shape(counting, vocabulary), DType::U32),
        };
        let kernel = match context {
            Some(_) => Sample::last(&tensors, binds, 1),
            None => Sample::rows(&tensors, binds),
        };
        let range = |desc: &samara::tensor::TensorDesc| {
            vec![gpu.storage(&desc.name, 4 * desc.shape.elements() as u64).unwrap()]
        };
        let bound = Planes(tensors.iter().map(|(_, desc)| range(desc)).collect());
        let executor = Executor::new(gpu, [("sample", &kernel as _)].into_iter(), &bound).unwrap();
        let device = Self { gpu, binds, bound, executor };
        device.write(binds.logits, bytemuck::cast_slice(logits));
        device.write(binds.state.ids, bytemuck::cast_slice(&vec![NOWHERE; rows]));
        device
    }

    fn write(&self, tensor: TensorId, bytes: &[u8]) {
        self.gpu.write(&self.bound.ranges(tensor)[0], 0, bytes);
    }

    fn begin(&self, options: &SamplerOptions, seen: &[u32], position: usize) {
        self.write(self.binds.options, bytemuck::bytes_of(&options.packed()));
        self.write(self.binds.last_seen, bytemuck::cast_slice(seen));
        self.write(self.binds.state.position, &(position as u32).to_le_bytes());
    }

    fn words(&self, tensor: TensorId) -> Vec<u32> {
        bytemuck::pod_collect_to_vec(&self.gpu.read(&self.bound.ranges(tensor)[0]).unwrap())
    }
}

/// Logits between -`scale` and `scale`, in steps of `scale` / 64, so that some are equal.
fn logits(count: usize, scale: f32, seed: u64) -> Vec<f32> {
    (0..count).map(|i| ((random(seed, i) >> 25) as f32 / 64.0 - 1.0) * scale).collect()
}

fn options(temperature: f32) -> SamplerOptions {
    SamplerOptions { temperature, ..SamplerOptions::default() }
}

fn settings() -> Vec<(&'static str, SamplerOptions)> {
    let all = SamplerOptions { top_k: 30, top_p: 0.8, min_p: 0.05, repeat_penalty: 1.3, ..options(1.2) };
    vec![
        ("temperature", options(1.5)),
        ("top-k", SamplerOptions { top_k: 12, ..options(2.0) }),
        ("top-p", SamplerOptions { top_p: 0.7, ..options(1.0) }),
        ("min-p", SamplerOptions { min_p: 0.1, ..options(1.0) }),
        ("penalty", SamplerOptions { repeat_penalty: 1.5, ..options(1.0) }),
        ("all", all),
    ]
}

/// The probability of every token, by the definition.
fn probabilities(logits: &[f32], history: &[u32], options: &SamplerOptions) -> Vec<f64> {
    let penalty = f64::from(options.repeat_penalty);
    let mut values: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
    for (id, value) in (0u32..).zip(&mut values) {
        if history.contains(&id) {
            *value = if *value > 0.0 { *value / penalty } else { *value * penalty };
        }
    }
    let mut ranked: Vec<usize> = (0..values.len()).collect();
    ranked.sort_by(|&a, &b| values[b].partial_cmp(&values[a]).unwrap().then(a.cmp(&b)));
    ranked.truncate(if options.top_k == 0 { values.len() } else { options.top_k });
    let weight = |&id: &usize| ((values[id] - values[ranked[0]]) / f64::from(options.temperature)).exp();
    let goal = f64::from(options.top_p) * ranked.iter().map(weight).sum::<f64>();
    let mut sum = 0.0;
    let needed = ranked.iter().take_while(|id| {
        let before = sum;
        sum += weight(id);
        before < goal
    });
    let kept: Vec<usize> = needed.filter(|id| weight(id) >= f64::from(options.min_p)).copied().collect();
    let total: f64 = kept.iter().map(weight).sum();
    let mut probabilities = vec![0.0; values.len()];
    kept.iter().for_each(|id| probabilities[*id] = weight(id) / total);
    probabilities
}

/// Checks that counts plausibly follow these probabilities: Pearson's test at a p-value of
/// 1e-4, cells with less than five draws taken together.
fn follows(counts: &[usize], probabilities: &[f64]) -> Result<(), String> {
    let draws: usize = counts.iter().sum();
    let (mut cells, mut rare) = (Vec::new(), (0.0, 0.0));
    for (&count, probability) in counts.iter().zip(probabilities) {
        let (count, expected) = (count as f64, probability * draws as f64);
        if expected == 0.0 && count > 0.0 {
            return Err(format!("{count} draws of a token that is cut off"));
        } else if expected < 5.0 {
            rare = (rare.0 + count, rare.1 + expected);
        } else {
            cells.push((count, expected));
        }
    }
    if rare.1 >= 5.0 {
        cells.push(rare);
    }
    let statistic: f64 = cells.iter().map(|(count, expected)| (count - expected).powi(2) / expected).sum();
    // Wilson and Hilferty's approximation; 3.719 is the normal distribution's 99.99 % point.
    let freedom = cells.len() as f64 - 1.0;
    let spread = 2.0 / (9.0 * freedom);
    let bound = freedom * (1.0 - spread + 3.719 * spread.sqrt()).powi(3);
    if statistic < bound {
        Ok(())
    } else {
        Err(format!("chi-square {statistic} > {bound}, {freedom} degrees"))
    }
}

#[test]
fn a_test_of_draws_refuses_others() {
    let uniform = [0.25; 4];
    assert!(follows(&[5000, 5050, 4980, 4970], &uniform).is_ok());
    assert!(follows(&[5000, 5400, 4800, 4800], &uniform).is_err());
    assert!(follows(&[10_000, 9_999, 1, 0], &[0.5, 0.5, 0.0, 0.0]).is_err());
}

#[test]
fn draws_on_the_device_follow_the_probabilities_and_are_those_of_the_cpu() {
    for gpu in common::gpus() {
        for (number, (name, options)) in settings().into_iter().enumerate() {
            // A ragged vocabulary among them.
            let row = logits(60 + 37 * number, 6.0, number as u64);
            let device = OnDevice::new(&gpu, ROWS, &row.repeat(ROWS), None);
            let options = SamplerOptions { seed: 99, ..options };
            let mut sampler = Sampler::new(options.clone()).unwrap();
            // Ids that occurred, then positions without a token of this vocabulary.
            let mut history: Vec<u32> = (0..20).map(|i| i * 5 % 60).collect();
            let seen = last_seen(&history, row.len());
            let expected = probabilities(&row, &history, &options);
            history.resize(20 + ROWS * DISPATCHES, NOWHERE);
            let (mut counts, mut differ) = (vec![0; row.len()], 0);
            for position in (19..).step_by(ROWS).take(DISPATCHES) {
                device.begin(&options, &seen, position);
                device.executor.run(&gpu);
                for (r, id) in device.words(device.binds.state.out).into_iter().enumerate() {
                    counts[id as usize] += 1;
                    let own = sampler.sample(&row, &history[..position + r + 1]).unwrap();
                    differ += usize::from(own != id);
                }
            }
            follows(&counts, &expected).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(differ * 1000 <= ROWS * DISPATCHES, "{name}: {differ} draws differ from the CPU's");
        }
    }
}

#[test]
fn a_sequence_goes_on_by_itself_on_the_device() {
    const TOKENS: usize = 48;
    for gpu in common::gpus() {
        for (vocabulary, window) in [(96, 0), (50, 7), (32000, 20)] {
            let row = logits(vocabulary, 5.0, 3);
            for temperature in [0.0, 0.8] {
                let prompt: Vec<u32> = (0..9).map(|i| i * 11 % 50).collect();
                let options = SamplerOptions {
                    repeat_penalty: 1.7,
                    repeat_window: window,
                    top_k: 40,
                    seed: 5,
                    ..options(temperature)
                };
                let device = OnDevice::new(&gpu, 1, &row, Some(prompt.len() + TOKENS));
                // The step of the prompt's last token is the first to draw.
                device.begin(&options, &last_seen(&prompt, vocabulary), prompt.len() - 1);
                let mut sampler = Sampler::new(options).unwrap();
                let mut history = prompt.clone();
                for _ in 0..TOKENS {
                    device.executor.run(&gpu);
                    history.push(sampler.sample(&row, &history).unwrap());
                }
                assert_eq!(
                    device.words(device.binds.state.out)[prompt.len()..][..TOKENS],
                    history[prompt.len()..]
                );
                assert_eq!(device.words(device.binds.last_seen), last_seen(&history, vocabulary));
                assert_eq!(device.words(device.binds.state.position), [history.len() as u32 - 1]);
                assert_eq!(device.words(device.binds.state.ids)[0], history[history.len() - 1]);
            }
        }
    }
}

#[test]
fn rows_of_drafted_tokens_draw_what_plain_decoding_would() {
    for gpu in common::gpus() {
        for window in [0, 3] {
            let rows = 8;
            let all = logits(rows * 130, 3.0, 17);
            let prompt: Vec<u32> = (0..12).map(|i| i * 7 % 130).collect();
            let draft: Vec<u32> = (0..rows as u32).map(|i| i % 3 * 40).collect();
            let options =
                SamplerOptions { repeat_penalty: 2.5, repeat_window: window, seed: 8, ..options(0.9) };
            let device = OnDevice::new(&gpu, rows, &all, None);
            let mut history = prompt;
            history.push(draft[0]);
            device.begin(&options, &last_seen(&history, 130), history.len() - 1);
            device.write(device.binds.state.ids, bytemuck::cast_slice(&draft));
            device.executor.run(&gpu);
            let mut sampler = Sampler::new(options).unwrap();
            for (r, id) in device.words(device.binds.state.out).into_iter().enumerate() {
                assert_eq!(id, sampler.sample(&all[r * 130..][..130], &history).unwrap(), "row {r}");
                history.extend(draft.get(r + 1));
            }
        }
    }
}
