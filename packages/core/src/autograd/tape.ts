import { expectFunction } from '../checks.ts'
import { NO_NUMBERS } from '../dispatch/call.ts'
import { GradError, show } from '../errors.ts'
import { isFloat } from '../tensor/dtype.ts'
import { shownAs } from '../tensor/printing.ts'
import { refuseAsync } from '../tensor/scope.ts'
import type { Tensor } from '../tensor/tensor.ts'

/**
 * A backward rule, in tensor operators so that it can itself be differentiated: from the gradients of the outputs
 * (null where there is none) to those of the inputs (null where there is none). A returned gradient may still have
 * the broadcast shape: the engine sums it down. Read inputs and outputs through the node, which checks that they are
 * as they were.
 */
export type Backward<A> = (
  node: GradNode<A>,
  douts: readonly (Tensor | null)[],
  pass: PassOf,
) => readonly (Tensor | null)[]

/** What a rule may ask of the backward pass that runs it, to save a pass over memory. */
export interface PassOf {
  /**
   * Hands over what input i has received so far, contiguous, of its shape and dtype: the rule then returns the sum.
   * Null where there is no such thing, or where the pass itself is recorded.
   */
  take(i: number): Tensor | null
}

let enabled = true
let sequence = 0

/**
 * Says whether operators are recorded here: true, but for what runs in `noGrad`.
 *
 * @example
 * noGrad(() => gradEnabled()) // → false
 */
export const gradEnabled = (): boolean => enabled

function withGrad<T>(op: string, value: boolean, fn: () => T): T {
  expectFunction(value ? 'enableGrad' : 'noGrad', fn)
  const before = enabled
  enabled = value
  try {
    const result = fn()
    refuseAsync(op, result, 'the mode ends when it returns. Await outside')
    return result
  } finally {
    enabled = before
  }
}

/**
 * Runs `fn` without recording a tape.
 *
 * @example
 * const w = ones([2], { requiresGrad: true })
 * noGrad(() => w.mul(2)).requiresGrad // → false
 */
export const noGrad = <T>(fn: () => T): T => withGrad('noGrad', false, fn)

/**
 * Runs `fn` with recording on, also inside `noGrad`.
 *
 * @example
 * noGrad(() => enableGrad(() => gradEnabled())) // → true
 */
export const enableGrad = <T>(fn: () => T): T => withGrad('enableGrad', true, fn)

/**
 * A function whose intermediates were dropped after it ran: running it again gives the nodes of a second graph like the
 * first. See `checkpoint`.
 */
export interface Replay {
  /** What the function was called with; needed until the graph is freed. */
  readonly inputs: readonly Tensor[]
  /** Runs it again: its nodes in the order of recording, and every tensor made meanwhile, which is the caller's. */
  run(): { nodes: readonly GradNode[]; made: readonly Tensor[] }
}

/** What the innermost running `listingNodes` gives nodes to, or null outside of all. */
let recorded: NodeList | null = null

/** What nodes are put into as they are recorded: an array, or somebody who looks at each. */
interface NodeList {
  push(node: GradNode): unknown
}

/** Runs `fn`, and gives every node that it records to `list` at once. */
export function listingNodes<T>(list: NodeList, fn: () => T): T {
  const outer = recorded
  recorded = list
  try {
    return fn()
  } finally {
    recorded = outer
  }
}

/** Runs `fn` and returns the nodes that it recorded beside its result. */
export function recordedNodes<T>(fn: () => T): { result: T; nodes: readonly GradNode[] } {
  const outer = recorded
  const nodes: GradNode[] = []
  const push = (node: GradNode): void => {
    nodes.push(node)
    outer?.push(node)
  }
  return { result: listingNodes({ push }, fn), nodes }
}

const NOTHING: readonly Tensor[] = []
const gone = ({ name }: { readonly name: string }): never => {
  throw freedError(name)
}

/** One recorded operator: what backward needs to know of the call. */
export class GradNode<A = unknown> {
  /** The operator's name. */
  readonly name: string
  /** The operator's attributes. */
  readonly attrs: A
  /** The numbers of the call. */
  readonly numbers: readonly number[]
  /** Order of recording; a node's inputs come from nodes of lower numbers. */
  readonly sequence: number
  /** What the operator was given. */
  inputs: readonly Tensor[]
  /** What it gave. */
  outputs: readonly Tensor[]
  /** Temporaries made for this node that live as long as its graph. */
  owned: readonly Tensor[] | null = null
  /** Says whether a backward pass has freed what it needs. */
  freed = false
  /** The backward pass that came by last. */
  mark = 0
  /** Set where inputs and outputs were dropped: the node at `index` of the replay stands in for this one. */
  replay: { readonly of: Replay; readonly index: number } | null = null
  #backward: Backward<A>
  readonly #versions: readonly number[]

  constructor(
    name: string,
    inputs: readonly Tensor[],
    outputs: readonly Tensor[],
    attrs: A,
    backward: Backward<A>,
    numbers: readonly number[],
  ) {
    this.name = name
    this.attrs = attrs
    this.numbers = numbers
    this.inputs = inputs
    this.outputs = outputs
    this.sequence = sequence++
    this.#backward = backward
    const versions = new Array<number>(inputs.length + outputs.length)
    for (let i = 0; i < inputs.length; i++) versions[i] = inputs[i].storage.version
    for (let i = 0; i < outputs.length; i++) versions[inputs.length + i] = outputs[i].storage.version
    this.#versions = versions
  }

  /** Input i as it was when the operator ran; throws GradError if it was modified in place since. */
  input(i: number): Tensor {
    return this.#check(this.inputs[i], this.#versions[i], `input ${i}`)
  }

  /** Output i as the operator left it; throws GradError if it was modified in place since. */
  output(i: number): Tensor {
    return this.#check(this.outputs[i], this.#versions[this.inputs.length + i], `output ${i}`)
  }

  /** Says whether input i needs a gradient. */
  needs(i: number): boolean {
    return this.inputs[i].requiresGrad
  }

  /** The rule: gradients of the inputs from those of the outputs. */
  backward(douts: readonly (Tensor | null)[], pass: PassOf): readonly (Tensor | null)[] {
    if (this.freed) throw freedError(this.name)
    return this.#backward(this, douts, pass)
  }

  /** Lets go of everything: who still has an output of a graph that was freed holds nothing else of it. */
  cut(): void {
    this.freed = true
    this.inputs = this.outputs = NOTHING
    this.owned = this.replay = null
    this.#backward = gone
  }

  #check(t: Tensor, version: number, which: string): Tensor {
    if (t.storage.version !== version) {
      throw new GradError(
        `${this.name}: its ${which}, a tensor ${show(t.shape)}, was modified in place after the operator ran (version ${version}, now ${t.storage.version}), and its gradient needs the old value; use the operator that returns a new tensor`,
      )
    }
    return t
  }
}

shownAs(
  GradNode.prototype,
  function () {
    const shapes = (list: readonly Tensor[]): string => list.map((t) => show(t.shape)).join(', ')
    return `GradNode(${this.name}: ${shapes(this.inputs)} → ${shapes(this.outputs)}${this.freed ? ', freed' : ''})`
  },
  function () {
    return this.name
  },
)

export const freedError = (name: string): GradError =>
  new GradError(
    `backward: the graph through ${name} was freed by an earlier backward(); pass { retainGraph: true } to that one to go through twice, or detach() what one step hands on to the next`,
  )

/** Whether a call with these inputs belongs on the tape. */
export function shouldRecord(inputs: readonly Tensor[]): boolean {
  if (!enabled) return false
  for (let i = 0; i < inputs.length; i++) if (inputs[i].requiresGrad) return true
  return false
}

/** Puts a call on the tape: its floating outputs then require gradients. Call only if `shouldRecord(inputs)`. */
export function record<A>(
  name: string,
  inputs: readonly Tensor[],
  outputs: readonly Tensor[],
  attrs: A,
  backward: Backward<A>,
  numbers = NO_NUMBERS,
): void {
  const node = new GradNode(name, inputs, outputs, attrs, backward, numbers)
  recorded?.push(node as GradNode)
  for (let i = 0; i < outputs.length; i++) if (isFloat(outputs[i].dtype)) outputs[i].gradFn = node as GradNode
}
