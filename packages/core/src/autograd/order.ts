/** Which nodes a backward pass goes through, and in what order. */

import type { Tensor } from '../tensor/tensor.ts'
import { freedError, type GradNode } from './tape.ts'

let passes = 0

/** The nodes behind some tensors, latest first. */
export function reachable(roots: readonly Tensor[]): GradNode[] {
  const nodes: GradNode[] = []
  const pass = ++passes
  const stack: GradNode[] = []
  for (const { gradFn } of roots) if (gradFn) stack.push(gradFn)
  while (stack.length > 0) {
    const node = stack.pop() as GradNode
    if (node.mark === pass) continue
    node.mark = pass
    if (node.freed) throw freedError(node.name)
    nodes.push(node)
    for (const t of node.inputs) if (t.gradFn && t.gradFn.mark !== pass) stack.push(t.gradFn)
  }
  return inOrder(nodes)
}

/** Sorts nodes, the latest first. Nodes of one graph are numbered nearly without gaps: each has a place of its own. */
function inOrder(nodes: GradNode[]): GradNode[] {
  if (nodes.length < 2) return nodes
  let first = Number.POSITIVE_INFINITY
  let last = 0
  for (const { sequence } of nodes) {
    first = Math.min(first, sequence)
    last = Math.max(last, sequence)
  }
  const span = last - first + 1
  if (span > 4 * nodes.length) return nodes.sort((a, b) => b.sequence - a.sequence)
  const places = new Array<GradNode | null>(span).fill(null)
  for (const node of nodes) places[last - node.sequence] = node
  let count = 0
  for (const node of places) if (node) nodes[count++] = node
  return nodes
}

/** The nodes on a path to a wanted tensor, among nodes in the order of the backward pass. */
export function pathsTo(wanted: Set<Tensor>, order: readonly GradNode[]): Set<GradNode> {
  const needed = new Set<GradNode>()
  for (let i = order.length - 1; i >= 0; i--) {
    const node = order[i]
    if (node.inputs.some((t) => wanted.has(t) || (t.gradFn && needed.has(t.gradFn)))) needed.add(node)
  }
  return needed
}
