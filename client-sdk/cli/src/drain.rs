//! `cluster drain`: asks the head to let a node go, and shows what keeps it.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use cluster_types::query::{DrainView, NodeView, Query, QueryReply};

use crate::args::DrainArgs;
use crate::ask::{ask, other_answer};
use crate::error::CliError;
use crate::units::count;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(300);

pub fn run(args: &DrainArgs) -> Result<(), CliError> {
    let deadline_ms = u64::try_from(args.deadline.as_millis()).unwrap_or(u64::MAX);
    let (_, reply) = ask(&args.ask, Query::Drain { node: args.node.clone(), deadline_ms })?;
    let QueryReply::Nodes(mut nodes) = reply else { return Err(other_answer()) };
    let Some(mut node) = nodes.pop() else { return Err(other_answer()) };
    let (id, name) = (node.node.clone(), format!("{} ({})", node.hostname, node.node));
    let mut told = String::new();
    loop {
        if args.no_wait {
            break;
        }
        say(args, &name, &node, &mut told)?;
        std::thread::sleep(LOOK);
        let (_, reply) = ask(&args.ask, Query::Nodes)?;
        let QueryReply::Nodes(nodes) = reply else { return Err(other_answer()) };
        match nodes.into_iter().find(|view| view.node == id) {
            Some(view) if view.draining.is_some() => node = view,
            // It is gone, or came again as a new one.
            _ => break,
        }
    }
    if !told.is_empty() && std::io::stderr().is_terminal() {
        eprintln!();
    }
    let mut out = std::io::stdout().lock();
    if args.ask.place.json {
        writeln!(out, "{}", serde_json::json!({ "node": id, "left": !args.no_wait }))?;
    } else if args.no_wait {
        writeln!(out, "Node {name} takes nothing new and leaves when it is idle.")?;
    } else {
        writeln!(out, "Node {name} has left the cluster.")?;
    }
    Ok(())
}

/// One line that changes, at a terminal; else a line for each change.
fn say(args: &DrainArgs, name: &str, node: &NodeView, told: &mut String) -> Result<(), CliError> {
    let Some(draining) = node.draining.as_ref().filter(|_| !args.ask.place.json) else { return Ok(()) };
    let keeps = what_keeps(node, draining);
    if keeps == *told {
        return Ok(());
    }
    let mut err = std::io::stderr().lock();
    if err.is_terminal() {
        write!(err, "\r\x1b[K{name}: {keeps}")?;
    } else {
        writeln!(err, "{name}: {keeps}")?;
    }
    *told = keeps;
    Ok(())
}

fn what_keeps(node: &NodeView, draining: &DrainView) -> String {
    let counted = [
        (node.running.into(), "task", "tasks"),
        (draining.actors.into(), "actor", "actors"),
        (draining.objects.into(), "object to move", "objects to move"),
        (draining.drivers.into(), "driver", "drivers"),
    ];
    let parts: Vec<String> = counted
        .into_iter()
        .filter(|(number, ..)| *number > 0_u64)
        .map(|(number, one, many)| format!("{} {}", count(number), if number == 1 { one } else { many }))
        .collect();
    match parts.is_empty() {
        true => "nothing is left to wait for".to_owned(),
        false => format!("waits for {}, at most {} s more", parts.join(", "), draining.left_ms / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_a_node_is_named() {
        let node = NodeView { running: 2, ..NodeView::default() };
        let draining = DrainView { left_ms: 90_500, actors: 1, drivers: 0, objects: 1_200 };
        assert_eq!(
            what_keeps(&node, &draining),
            "waits for 2 tasks, 1 actor, 1,200 objects to move, at most 90 s more"
        );
        assert_eq!(what_keeps(&NodeView::default(), &DrainView::default()), "nothing is left to wait for");
    }
}
