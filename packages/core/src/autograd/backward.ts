import { describe, expectOptions } from '../checks.ts'
import { casting } from '../dispatch/casting.ts'
import { DTypeError, GradError, ShapeError, show, ValueError } from '../errors.ts'
import { addInto, addTensors, copy, fillLike } from '../primitives/elementwise.ts'
import { reduce } from '../primitives/reduce.ts'
import { reshapeView } from '../primitives/views.ts'
import { sameShape } from '../tensor/layout.ts'
import { expectTensor } from '../tensor/operands.ts'
import { canReclaim } from '../tensor/safety-net.ts'
import { collect, drop, inScope, madeSince, type Scoped, track, trackedSoFar } from '../tensor/scope.ts'
import type { Tensor } from '../tensor/tensor.ts'
import { pathsTo, reachable } from './order.ts'
import { Spared } from './spared.ts'
import { enableGrad, type GradNode, noGrad, type PassOf, type Replay } from './tape.ts'

/** Options of `backward`. */
export interface BackwardOptions {
  /** The gradient of the tensor that is differentiated, of its shape; if missing, 1 for a tensor of one element. */
  gradient?: Tensor
  /** Keep the graph, to go through it again. Default: the value of `createGraph`. */
  retainGraph?: boolean
  /** Record the backward pass itself, for higher derivatives. */
  createGraph?: boolean
}

/** Options of `grad`. */
export interface GradOptions {
  /** The gradient of each output; a missing one is 1 for an output of one element. */
  gradOutputs?: readonly (Tensor | null)[]
  /** Keep the graph, to go through it again. Default: the value of `createGraph`. */
  retainGraph?: boolean
  /** Record the backward pass itself, for higher derivatives. Default: false. */
  createGraph?: boolean
  /** Return null for inputs that the outputs do not depend on, instead of throwing. */
  allowUnused?: boolean
}

/**
 * Accumulates d root / d leaf into `.grad` of every leaf that requires a gradient, and frees the graph's intermediates
 * unless told to retain it: all but root, scalars, kept tensors, and those nearest to root, such as the logits of a
 * loss. Of these as many stay readable as take 8 MiB, or a 16th of what the whole graph takes.
 *
 * @throws GradError if root has no gradient, is no scalar (without `gradient`), or its graph was freed.
 * @example
 * const w = tensor([1, 2, 3], { requiresGrad: true })
 * w.square().sum().backward()
 * await w.grad?.toArray() // → [2, 4, 6]
 */
export function backward(root: Tensor, options: BackwardOptions = {}): void {
  expectTensor('backward', root)
  expectOptions('backward', options, { gradient: 1, retainGraph: 1, createGraph: 1 })
  const createGraph = options.createGraph ?? false
  walk([root], [options.gradient ?? null], {
    createGraph,
    retainGraph: options.retainGraph ?? createGraph,
    wanted: null,
  })
}

/**
 * Gradients of the outputs (summed) with respect to the inputs, without touching any `.grad`. The graph is freed unless
 * `retainGraph` or `createGraph` is set.
 *
 * @throws GradError if an input does not require a gradient, or is not reached (unless `allowUnused`).
 * @example
 * const x = tensor([2], { requiresGrad: true })
 * const [dx] = grad(x.pow(3).sum(), [x], { createGraph: true }) as [Tensor]
 * await dx.toArray() // → [12]
 * const [d2x] = grad(dx.sum(), [x]) as [Tensor]
 * await d2x.toArray() // → [12]
 */
export function grad(
  outputs: Tensor | readonly Tensor[],
  inputs: readonly Tensor[],
  options?: GradOptions & { allowUnused?: false },
): Tensor[]
export function grad(
  outputs: Tensor | readonly Tensor[],
  inputs: readonly Tensor[],
  options: GradOptions,
): (Tensor | null)[]
export function grad(
  outputs: Tensor | readonly Tensor[],
  inputs: readonly Tensor[],
  options: GradOptions = {},
): (Tensor | null)[] {
  const roots = Array.isArray(outputs) ? (outputs as readonly Tensor[]) : [outputs as Tensor]
  expectOptions('grad', options, { gradOutputs: 1, retainGraph: 1, createGraph: 1, allowUnused: 1 })
  for (const t of roots) expectTensor('grad', t)
  if (!Array.isArray(inputs))
    throw new ValueError(`grad: inputs are an array of tensors, got ${describe(inputs)}`)
  for (const t of inputs) expectTensor('grad', t)
  const createGraph = options.createGraph ?? false
  inputs.forEach((t, i) => {
    if (!t.requiresGrad)
      throw new GradError(
        `grad: input ${i}, a tensor ${show(t.shape)}, does not require a gradient; set requiresGrad before using it`,
      )
  })
  const found = walk(roots, options.gradOutputs ?? roots.map(() => null), {
    createGraph,
    retainGraph: options.retainGraph ?? createGraph,
    wanted: new Set(inputs),
  })
  return inputs.map((t, i) => {
    const g = found.get(t) ?? null
    if (g) {
      g.returned = true
    }
    if (!g && !options.allowUnused)
      throw new GradError(
        `grad: the outputs do not depend on input ${i}, a tensor ${show(t.shape)}; pass { allowUnused: true } to get null for it`,
      )
    return g
  })
}

interface Mode {
  createGraph: boolean
  retainGraph: boolean
  /** The tensors to capture gradients of, or null to accumulate into the leaves' `.grad`. */
  wanted: Set<Tensor> | null
}

function walk(roots: readonly Tensor[], seeds: readonly (Tensor | null)[], mode: Mode): Map<Tensor, Tensor> {
  const pass = new Pass(mode, roots)
  const before = casting.now
  const run = (): void => {
    try {
      // Gradients are computed in the dtypes that the forward pass has made.
      casting.now = null
      roots.forEach((root, i) => pass.seed(root, seeds[i] ?? null))
      pass.run()
    } catch (error) {
      pass.abandon()
      throw error
    } finally {
      pass.end()
      casting.now = before
    }
  }
  // What is in flight when an error comes by is freed with all that was made.
  const { made } = collect(() => (mode.createGraph ? enableGrad(run) : noGrad(run)))
  for (const t of made) if (!t.disposed) track(t)
  return pass.captured
}

/** One backward pass. Every gradient in flight is a Tensor object owned by exactly one place. */
class Pass implements PassOf {
  readonly captured = new Map<Tensor, Tensor>()
  readonly #mode: Mode
  readonly #roots: Set<Tensor>
  /** Gradients of outputs, per node. */
  readonly #pending = new Map<GradNode, (Tensor | null)[]>()
  readonly #leaves = new Map<Tensor, Tensor>()
  readonly #order: GradNode[]
  /** Nodes on a path to a wanted tensor; null: all. */
  readonly #needed: Set<GradNode> | null
  /** The node whose rule runs. */
  #current: GradNode | null = null
  /** Nodes that were freed, whose links are cut at the end. */
  readonly #cut: GradNode[] = []
  #spared: Spared | null
  /** The checkpoints that are computed again at the moment, an outer one before those within it. */
  readonly #replays = new Map<Replay, ReturnType<Replay['run']>>()

  constructor(mode: Mode, roots: readonly Tensor[]) {
    this.#mode = mode
    this.#roots = new Set(roots)
    this.#order = reachable(roots)
    this.#needed = mode.wanted && pathsTo(mode.wanted, this.#order)
    // Somebody must free them in the end.
    this.#spared = inScope() || canReclaim() ? new Spared(this.#order, roots) : null
  }

  seed(root: Tensor, given: Tensor | null): void {
    if (!root.requiresGrad) {
      throw new GradError(
        `backward: the tensor ${show(root.shape)} does not require a gradient: it was made from no tensor that does, inside noGrad(), detached, or by a compiled function, which must call backward() itself`,
      )
    }
    if (given && !sameShape(given.shape, root.shape))
      throw new ShapeError(
        `backward: gradient ${show(given.shape)} must have the output's shape ${show(root.shape)}`,
      )
    if (!given && root.numel !== 1)
      throw new GradError(
        `backward: the output ${show(root.shape)} is no scalar; reduce it (sum, mean) or pass its gradient`,
      )
    this.#give(root, given ? (this.#mode.createGraph ? given : given.viewAs(given)) : fillLike(root, 1))
  }

  run(): void {
    const { createGraph, retainGraph, wanted } = this.#mode
    for (const node of this.#order) {
      const douts = this.#pending.get(node)
      if (!douts) {
        if (!retainGraph) this.#free(node)
        continue
      }
      this.#pending.delete(node)
      const live = this.#restored(node)
      for (let i = 0; i < douts.length; i++) {
        if (douts[i]) douts[i] = this.#complete(node.outputs[i], douts[i] as Tensor)
      }
      if (this.#needed && !this.#needed.has(node)) {
        if (!createGraph) for (const d of douts) d?.dispose()
      } else if (createGraph) this.#spread(node, live.backward(douts, this))
      else {
        this.#current = node
        const before = trackedSoFar()
        const dins = live.backward(douts, this)
        const fitted = new Array<Tensor | null>(dins.length)
        for (let i = 0; i < dins.length; i++) {
          const d = dins[i]
          fitted[i] = d && node.needs(i) ? fit(d, node.inputs[i]) : null
        }
        const owned = ownedOf(fitted, madeSince(before))
        for (const d of douts) d?.dispose()
        this.#spread(node, owned)
      }
      if (!retainGraph) this.#free(node)
    }
    // First whatever may throw.
    for (const [leaf, g] of this.#leaves) if (leaf.hooks) this.#leaves.set(leaf, this.#hooked(leaf, g))
    for (const [leaf, done] of this.#leaves) {
      if (wanted) {
        if (wanted.has(leaf)) this.#capture(leaf, done)
        else if (!createGraph) done.dispose()
      } else accumulate(leaf, done, createGraph)
    }
  }

  /** Frees the rest of the graph after an error, since a graph that was freed in part is of no use any more. */
  abandon(): void {
    if (this.#cut.length === 0) return
    this.#spared = null
    for (const { outputs } of this.#cut) for (const t of outputs) if (this.#frees(t)) t.release('backward()')
    for (const node of this.#order) this.#free(node)
  }

  /** Drops again what was restored, and temporaries of composed operators, which inner nodes may have needed. */
  end(): void {
    for (const replay of this.#replays.keys()) this.#drop(replay)
    for (const node of this.#cut) {
      for (const t of node.owned ?? []) if (this.#frees(t)) t.release('backward()')
      node.cut()
    }
  }

  /** The node itself, or the one that stands in for it after its checkpoint has run again. */
  #restored(node: GradNode): GradNode {
    if (!node.replay) return node
    const chain = new Set<Replay>()
    let live = node
    while (live.replay) {
      const { of, index } = live.replay
      chain.add(of)
      // Nodes of one checkpoint follow each other: what is not in the chain is done.
      let replayed = this.#replays.get(of)
      if (!replayed) {
        for (const other of this.#replays.keys()) if (!chain.has(other)) this.#drop(other)
        replayed = of.run()
        this.#replays.set(of, replayed)
        // The graph of this pass may go through these nodes: they live as long as its other tensors.
        if (this.#mode.createGraph) for (const t of replayed.made) track(t)
      }
      live = replayed.nodes[index]
    }
    return live
  }

  #drop(replay: Replay): void {
    const made = this.#replays.get(replay)?.made ?? []
    if (!this.#mode.createGraph) drop(made, 'backward()')
    this.#replays.delete(replay)
  }

  #spread(node: GradNode, dins: readonly (Tensor | null)[]): void {
    for (let i = 0; i < dins.length; i++) {
      const d = dins[i]
      const input = node.inputs[i]
      if (!d) continue
      if (input.requiresGrad && this.#wants(input))
        this.#give(input, this.#mode.createGraph ? fit(d, input) : d)
      else if (!this.#mode.createGraph) d.dispose()
    }
  }

  take(i: number): Tensor | null {
    const input = this.#current?.inputs[i]
    if (!input || this.#mode.createGraph) return null
    const { gradFn } = input
    const slots = gradFn && this.#pending.get(gradFn)
    const g = gradFn ? slots?.[placeOf(input)] : this.#leaves.get(input)
    if (!g || g.dtype !== input.dtype || !g.isContiguous) return null
    if (slots) slots[placeOf(input)] = null
    else this.#leaves.delete(input)
    // It is freed with what the rule makes.
    track(g)
    return g
  }

  /** Whether this tensor needs a gradient in this pass: in one to wanted tensors, whether it is or leads to one of them. */
  #wants(t: Tensor): boolean {
    if (!this.#needed || this.#mode.wanted?.has(t)) return true
    return t.gradFn !== null && this.#needed.has(t.gradFn)
  }

  #give(to: Tensor, g: Tensor): void {
    const node = to.gradFn
    if (!node) {
      this.#leaves.set(to, this.#sum(this.#leaves.get(to), g))
      return
    }
    let slots = this.#pending.get(node)
    if (!slots) {
      slots = []
      for (let i = 0; i < node.outputs.length; i++) slots.push(null)
      this.#pending.set(node, slots)
    }
    const i = placeOf(to)
    slots[i] = this.#sum(slots[i], g)
  }

  #sum(have: Tensor | null | undefined, g: Tensor): Tensor {
    if (!have) return g
    const sum = addTensors(have, g)
    if (!this.#mode.createGraph) {
      have.dispose()
      g.dispose()
    }
    return sum
  }

  /** The gradient of a non-leaf is complete: hooks, captures and retained gradients happen here. */
  #complete(t: Tensor, g: Tensor): Tensor {
    const done = this.#hooked(t, g)
    const { wanted, createGraph } = this.#mode
    if (wanted?.has(t)) this.#capture(t, createGraph ? done : done.viewAs(done))
    if (!wanted && t.retainsGrad) accumulate(t, createGraph ? done : done.viewAs(done), createGraph)
    return done
  }

  #hooked(t: Tensor, g: Tensor): Tensor {
    let out = g
    for (const hook of t.hooks ?? []) {
      const before = trackedSoFar()
      // The hook may keep what it is given: it gets a view of its own.
      const seen = this.#mode.createGraph ? out : out.viewAs(out)
      const next = hook(seen)
      if (!next || next === seen) continue
      expectTensor('hook', next)
      if (!sameShape(next.shape, t.shape))
        throw new ShapeError(`hook: returned a gradient ${show(next.shape)} for a tensor ${show(t.shape)}`)
      if (next.dtype !== t.dtype)
        throw new DTypeError(`hook: returned a gradient of ${next.dtype} for a tensor of ${t.dtype}`)
      if (this.#mode.createGraph) out = next
      else {
        out.dispose()
        // What the hook has not made is somebody else's.
        out = madeSince(before).includes(next) ? next : next.viewAs(next)
      }
    }
    return out
  }

  #capture(t: Tensor, g: Tensor): void {
    this.captured.set(t, g)
  }

  /** Scalars stay: they cost nothing, and the parts of a loss are read after backward(). */
  #frees(t: Tensor): boolean {
    return !t.kept && !t.returned && t.numel !== 1 && !this.#roots.has(t) && !this.captured.has(t)
  }

  #free(node: GradNode): void {
    if (node.freed) return
    node.freed = true
    const standIn = node.replay && this.#replays.get(node.replay.of)?.nodes[node.replay.index]
    if (standIn) this.#free(standIn)
    for (const t of node.outputs)
      if (this.#frees(t) && !(!t.disposed && this.#spared?.takes(t))) t.release('backward()')
    this.#cut.push(node)
  }
}

/**
 * Turns what a rule returned into tensors that belong to nobody else: those of `made` themselves, each once, and views
 * of all others. Frees the rest of `made`.
 */
function ownedOf(result: readonly (Tensor | null)[], made: Scoped[]): (Tensor | null)[] {
  const owned = new Array<Tensor | null>(result.length)
  for (let i = 0; i < result.length; i++) {
    const d = result[i]
    // Found at once, as a rule: what is returned was made in this order.
    const at = d ? made.indexOf(d) : -1
    if (at >= 0) made.splice(at, 1)
    owned[i] = d && at < 0 ? d.viewAs(d) : d
  }
  drop(made, 'backward()')
  return owned
}

/** The number of a tensor among the outputs of its node. */
const placeOf = (t: Tensor): number => {
  const { outputs } = t.gradFn as GradNode
  return outputs.length === 1 ? 0 : outputs.indexOf(t)
}

/** Stores a gradient in `.grad`, adding to what is there. The stored tensor outlives scopes. */
function accumulate(leaf: Tensor, g: Tensor, createGraph: boolean): void {
  const have = leaf.grad
  if (!have) {
    // A gradient that shares memory with others (an expanded or aliased one) becomes a tensor of its own.
    const own = createGraph || (g.storage.tensors.count === 1 && g.isContiguous)
    leaf.grad = own ? g : copy(g)
    if (!own) g.dispose()
  } else {
    // In place, as PyTorch, so that a compiled step finds the gradient where it was. What is on a tape stays as it is.
    if (createGraph || have.requiresGrad || have.dtype !== g.dtype) leaf.grad = addTensors(have, g)
    else addInto(have, g)
    if (!createGraph) {
      g.dispose()
      if (leaf.grad !== have) have.dispose()
    }
  }
  leaf.grad?.keep()
}

/** A gradient as its input wants it: broadcast dims summed away (once, here), dtype as the input's. */
function fit(d: Tensor, input: Tensor): Tensor {
  const summed = sumTo(d, input.shape)
  return summed.dtype === input.dtype ? summed : copy(summed, input.dtype)
}

/** Sums broadcast dims away: the adjoint of broadcasting to d's shape. */
export function sumTo(d: Tensor, shape: readonly number[]): Tensor {
  if (sameShape(d.shape, shape)) return d
  const lead = d.rank - shape.length
  const dims = d.shape.map((_, i) => i).filter((i) => i < lead || (shape[i - lead] === 1 && d.shape[i] !== 1))
  return reshapeView(dims.length > 0 ? reduce('sum', d, dims, true) : d, shape)
}
