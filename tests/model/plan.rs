//! The buffer plan on random graphs: no two live tensors share a buffer, and no operation both reads and writes a
//! buffer.

use proptest::prelude::*;
use samara::graph::plan::{Plan, bytes, lifetime, plan};
use samara::graph::{Graph, Role};
use samara::kernels::{Choice, Cost, Dispatch, Fragment, Kernel, Memory, Operand, Tier};
use samara::tensor::{DType, TensorId};

/// A kernel that only has operands.
#[derive(Debug)]
struct Touch(Vec<Operand>);

impl Kernel for Touch {
    fn name(&self) -> &'static str {
        "touch"
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        Vec::new()
    }

    fn operands(&self) -> Vec<Operand> {
        self.0.clone()
    }

    fn shape(&self) -> String {
        String::new()
    }

    fn dispatch(&self, _tier: Tier, _choice: &Choice) -> Dispatch {
        Dispatch { overrides: Vec::new(), params: Vec::new(), grid: [1; 3] }
    }

    fn cost(&self, _position: usize) -> Cost {
        Cost::default()
    }

    fn reference(&self, _memory: &mut Memory) {}
}

/// A graph whose operation i writes tensor i and reads the given earlier ones; every third tensor has
/// state or weight storage, and some operations write their tensor in two steps.
fn graph(sizes: &[usize], reads: &[Vec<prop::sample::Index>], split: &[bool]) -> Graph {
    let mut graph = Graph::default();
    let mut made: Vec<TensorId> = Vec::new();
    for (index, ((&size, reads), &split)) in sizes.iter().zip(reads).zip(split).enumerate() {
        let role = match index % 7 {
            3 => Role::State,
            5 => Role::Weight,
            _ => Role::Activation,
        };
        let out = graph.tensor(format!("t{index}"), [size], DType::F32, role);
        let mut inputs: Vec<TensorId> =
            if made.is_empty() { Vec::new() } else { reads.iter().map(|read| *read.get(&made)).collect() };
        inputs.dedup();
        let operands = |write: fn(TensorId) -> Operand| {
            inputs.iter().map(|&id| Operand::read(id)).chain([write(out)]).collect()
        };
        graph.push(format!("op{index}"), Touch(operands(Operand::write)));
        if split {
            graph.push(format!("op{index}, second part"), Touch(operands(Operand::read_write)));
        }
        made.push(out);
    }
    graph
}

fn check(graph: &Graph, plan: &Plan) -> Result<(), TestCaseError> {
    let live: Vec<_> = graph
        .tensors()
        .iter()
        .filter_map(|(id, desc)| Some((id, desc, lifetime(graph, id)?, plan.slot[id.0 as usize])))
        .collect();
    for (id, desc, life, slot) in &live {
        prop_assert_eq!(slot.is_some(), graph.role(*id) == Role::Activation);
        let Some(slot) = slot else { continue };
        prop_assert!(plan.slots[*slot] >= bytes(desc), "`{}` does not fit its slot", desc.name);
        for (other, other_desc, other_life, other_slot) in &live {
            let overlap = life.start() <= other_life.end() && other_life.start() <= life.end();
            prop_assert!(
                id == other || !overlap || other_slot != &Some(*slot),
                "`{}` and `{}` live at once in slot {}",
                desc.name,
                other_desc.name,
                slot
            );
        }
    }
    for op in graph.ops() {
        let slots = |writes: bool| {
            let operands = op.kernel.operands().into_iter().filter(move |o| o.access.writes() == writes);
            operands.filter_map(|o| plan.slot[o.tensor.0 as usize]).collect::<Vec<_>>()
        };
        let written = slots(true);
        prop_assert!(slots(false).iter().all(|slot| !written.contains(slot)), "{}", op.label);
    }
    Ok(())
}

proptest! {
    #[test]
    fn live_tensors_never_share_a_buffer(
        steps in prop::collection::vec(
            (1usize..5000, prop::collection::vec(any::<prop::sample::Index>(), 0..4), any::<bool>()),
            1..60,
        )
    ) {
        let sizes: Vec<usize> = steps.iter().map(|step| step.0).collect();
        let reads: Vec<_> = steps.iter().map(|step| step.1.clone()).collect();
        let split: Vec<bool> = steps.iter().map(|step| step.2).collect();
        let graph = graph(&sizes, &reads, &split);
        let plan = plan(&graph);
        check(&graph, &plan)?;
        let apart: u64 = graph.tensors().iter().map(|(_, desc)| bytes(desc)).sum();
        prop_assert!(plan.bytes() <= apart, "sharing takes {} bytes, separate buffers {apart}", plan.bytes());
    }
}

#[test]
fn a_chain_needs_two_buffers() {
    let mut graph = Graph::default();
    let mut last = graph.activation("t0", [64]);
    graph.push("op0", Touch(vec![Operand::write(last)]));
    for index in 1..20 {
        let next = graph.activation(format!("t{index}"), [64]);
        graph.push(format!("op{index}"), Touch(vec![Operand::read(last), Operand::write(next)]));
        last = next;
    }
    assert_eq!(plan(&graph).slots, [256, 256]);
}
