/** Finds the operator whose gradient became NaN. */

import { expectFunction } from '../checks.ts'
import { capturing } from '../dispatch/capturing.ts'
import { DeviceError, GradError, show } from '../errors.ts'
import { data, dataSync } from '../ops/create.ts'
import { isnan } from '../ops/pointwise.ts'
import { any } from '../ops/reduction.ts'
import { isFloat } from '../tensor/dtype.ts'
import { scope } from '../tensor/memory.ts'
import { deepStacks, originOf } from '../tensor/origin.ts'
import { refuseAsync } from '../tensor/scope.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { type GradNode, listingNodes, noGrad } from './tape.ts'

/** Where a node was recorded; an error's stack is only spelled out when it is asked for. */
interface Site {
  readonly name: string
  readonly error: Error
}

/** Looks at the gradients that a node's rule gives. */
type Look = (
  node: GradNode,
  site: Site,
  douts: readonly (Tensor | null)[],
  dins: readonly (Tensor | null)[],
) => void

/** Wraps the rule of every node that is recorded. */
class Watch {
  readonly #look: Look
  /** The node whose rule runs: what is recorded meanwhile belongs to its gradient. */
  #inside: Site | null = null
  #ended = false

  constructor(look: Look) {
    this.#look = look
  }

  push(node: GradNode): void {
    capturing()?.refuses('detectAnomaly', 'look into the function itself, without compile')
    const { name } = node
    const inside = this.#inside
    const site: Site = inside
      ? { name: `${name}, in the gradient of ${inside.name}`, error: inside.error }
      : { name, error: new Error() }
    const rule = node.backward
    node.backward = (douts, pass) => {
      if (this.#ended) return rule.call(node, douts, pass)
      const outer = this.#inside
      this.#inside = site
      try {
        const dins = rule.call(node, douts, pass)
        noGrad(() => this.#look(node, site, douts, dins))
        return dins
      } finally {
        this.#inside = outer
      }
    }
  }

  run<T>(op: string, fn: () => T): T {
    const endStacks = deepStacks()
    try {
      const result = listingNodes(this, fn)
      refuseAsync(op, result, 'what it does later is not looked at. Await outside')
      return result
    } finally {
      this.#ended = true
      endStacks()
    }
  }
}

/** The gradients of inputs that have one. */
const given = (node: GradNode, dins: readonly (Tensor | null)[]): (readonly [number, Tensor])[] =>
  dins.flatMap((d, i) => (d && isFloat(d.dtype) && node.needs(i) ? [[i, d] as const] : []))

const shapesOf = ({ inputs, outputs }: GradNode): string => {
  const list = (tensors: readonly Tensor[]): string => tensors.map((t) => show(t.shape)).join(', ')
  return `${list(inputs)} → ${list(outputs)}`
}

/** The operator's name first, then what happened, and where it was called. */
const anomaly = ({ name, error }: Site, sizes: string, which: number, more: string): GradError =>
  new GradError(
    `${name}: in the backward pass the gradient of its input ${which} became NaN (${sizes})${more}. The operator was called\n${originOf(error)}`,
  )

/** The number of the first NaN, or −1. */
const firstNaN = (t: Tensor | null): number =>
  t && isFloat(t.dtype) && !t.disposed ? dataSync(t).findIndex((x) => Number.isNaN(x)) : -1

/** What explains a NaN: those that were there already, or the numbers it was made of. */
function reason(node: GradNode, douts: readonly (Tensor | null)[], d: Tensor, at: number): string {
  if (douts.some((t) => firstNaN(t) >= 0))
    return '; so was the gradient that came to it, from the seed or as a sum of infinite ones'
  const input = node.inputs.findIndex((t) => firstNaN(t) >= 0)
  if (input >= 0) return `; so was its input ${input} in the forward pass`
  if (node.outputs.some((t) => firstNaN(t) >= 0)) return '; so was its output in the forward pass'
  const values = node.inputs.map((t) =>
    t.disposed || show(t.shape) !== show(d.shape) ? '…' : String(dataSync(t)[at]),
  )
  return values.some((v) => v !== '…')
    ? `, first at element ${at}, where its inputs are ${values.join(', ')}`
    : ''
}

let running = false

/**
 * Runs `fn`, a forward and a backward pass, and throws as soon as the backward pass makes NaN of a gradient: the error says
 * which operator did it, with its shapes, and where it was called in the forward pass (PyTorch's
 * `torch.autograd.detect_anomaly`). Every gradient is read, which takes time: for finding a fault only, it costs nothing
 * elsewhere. Operators that were called before, and compiled functions, are not looked into.
 *
 * @param fn must be synchronous.
 * @returns what `fn` returns.
 * @throws GradError naming the operator; DeviceError on a device that cannot be read at once, as a GPU: `detectAnomalyAsync`
 * is for these.
 * @example
 * const x = tensor([0, 1], { requiresGrad: true })
 * const step = () => x.sqrt().mul(0).sum().backward() // 0 · ∞
 * try {
 *   detectAnomaly(step)
 * } catch (error) {
 *   (error as Error).message.split(':')[0] // → sqrt
 * }
 */
export function detectAnomaly<T>(fn: () => T): T {
  expectFunction('detectAnomaly', fn)
  if (running) return fn()
  running = true
  const watch = new Watch((node, site, douts, dins) => {
    for (const [i, d] of given(node, dins)) {
      if (!d.backend.readSync)
        throw new DeviceError(
          `detectAnomaly: ${d.device} cannot be read at once; use await detectAnomalyAsync(fn)`,
        )
      const at = firstNaN(d)
      if (at >= 0) throw anomaly(site, shapesOf(node), i, reason(node, douts, d, at))
    }
  })
  try {
    return watch.run('detectAnomaly', fn)
  } finally {
    running = false
  }
}

/**
 * Runs `fn`, a forward and a backward pass, as `detectAnomaly` does, on any device: whether gradients are NaN is
 * computed there and read in the end, so that the error comes after the whole of `fn`, for the operator that was first.
 *
 * @param fn must be synchronous itself.
 * @returns a promise of what `fn` returns.
 * @throws GradError naming the operator.
 * @example
 * const x = tensor([-1, 1], { requiresGrad: true })
 * await detectAnomalyAsync(() => x.log().sum().backward())
 * await x.grad?.toArray() // → -1,1
 */
export async function detectAnomalyAsync<T>(fn: () => T): Promise<T> {
  expectFunction('detectAnomalyAsync', fn)
  if (running) return fn()
  running = true
  const found: { readonly flag: Tensor; readonly error: () => GradError }[] = []
  const watch = new Watch((node, site, _, dins) => {
    const sizes = shapesOf(node)
    for (const [i, d] of given(node, dins)) {
      const flag = scope(() => any(isnan(d)).keep())
      found.push({ flag, error: () => anomaly(site, sizes, i, '') })
    }
  })
  try {
    const result = watch.run('detectAnomalyAsync', fn)
    running = false
    const broken = await Promise.all(found.map(async ({ flag }) => (await data(flag))[0]))
    const first = broken.findIndex((x) => x)
    if (first >= 0) throw found[first].error()
    return result
  } finally {
    running = false
    for (const { flag } of found) flag.dispose()
  }
}
