import type { GradNode } from '../autograd/tape.ts'
import { expectFunction } from '../checks.ts'
import { runScope, type Scoped } from './scope.ts'
import { counts } from './storage.ts'
import { Tensor } from './tensor.ts'

/** What is alive, over all backends. */
export interface MemoryInfo {
  /** Live tensor objects, views included. */
  tensors: number
  /** Live pieces of memory. */
  storages: number
  /** Bytes of live tensors, over all backends. */
  bytes: number
  /** The most bytes alive at once since the process began or `resetPeakMemory()`. */
  peakBytes: number
}

/**
 * What is alive now, over all backends. Backends may hold more memory, pooled for reuse.
 *
 * @example
 * memory().bytes >= 0 // → true
 */
export const memory = (): MemoryInfo => ({ ...counts })

/**
 * Makes `memory().peakBytes` start over from what is alive now.
 *
 * @example
 * resetPeakMemory()
 * memory().peakBytes === memory().bytes // → true
 */
export function resetPeakMemory(): void {
  counts.peakBytes = counts.bytes
}

/**
 * Runs `fn` and frees every tensor made inside it, except kept ones, gradients in `.grad`, and what it returns
 * (tensors anywhere in arrays, maps and plain objects, with what their graph needs).
 *
 * @throws GradError if `fn` is asynchronous: compute inside, await the reads outside.
 * @example
 * const x = randn([8, 4])
 * const w = randn([4, 2], { requiresGrad: true })
 * const loss = scope(() => {
 *   const loss = x.matmul(w).square().mean()
 *   loss.backward()
 *   return loss
 * })
 * console.log(await loss.item())
 */
export const scope = <T>(fn: () => T): T => {
  expectFunction('scope', fn)
  return runScope(fn, live)
}

/** @internal The tensors anywhere in arrays, maps, sets and plain objects. */
export function tensorsIn(result: unknown): Set<Tensor> {
  const found = new Set<Tensor>()
  const seen = new Set<object>()
  const stack: object[] = []
  // One by one: calls take no more than some 100,000 arguments. Numbers need no place.
  const push = (value: unknown): void => {
    if (typeof value === 'object' && value !== null && !seen.has(value)) stack.push(value)
  }
  push(result)
  while (stack.length > 0) {
    const value = stack.pop() as object
    if (seen.has(value)) continue
    seen.add(value)
    if (value instanceof Tensor) found.add(value)
    else if (!ArrayBuffer.isView(value)) for (const inner of partsOf(value)) push(inner)
  }
  return found
}

/** Lists what is in an array, a set, a map (keys too) or any other object. */
function partsOf(value: object): Iterable<unknown> {
  if (Array.isArray(value) || value instanceof Set) return value
  return value instanceof Map ? [...value.keys(), ...value.values()] : Object.values(value)
}

/** @internal The tensors in a result, their gradients, and what their graphs need. */
export function live(result: unknown): Set<Scoped> {
  const found = new Set<Scoped>()
  const nodes = new Set<GradNode>()
  const graph: GradNode[] = []
  for (const t of tensorsIn(result)) {
    found.add(t)
    if (t.grad) found.add(t.grad)
    if (t.gradFn) graph.push(t.gradFn)
  }
  while (graph.length > 0) {
    const node = graph.pop() as GradNode
    // What a backward pass has freed needs nothing any more: not even its constants.
    if (nodes.has(node) || node.freed) continue
    nodes.add(node)
    for (const t of [
      ...node.inputs,
      ...node.outputs,
      ...(node.owned ?? []),
      ...(node.replay?.of.inputs ?? []),
    ]) {
      found.add(t)
      if (t.gradFn) graph.push(t.gradFn)
    }
  }
  return found
}
