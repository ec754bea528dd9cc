import {
  cat,
  describeValue,
  dropout,
  expectOptions,
  expectTensor,
  linear,
  type Names,
  ShapeError,
  show,
  stack,
  Tensor,
  ValueError,
  zeros,
} from '@tilegrad/core'
import { recurrence } from '@tilegrad/core/kernel'
import * as init from '../init.ts'
import { Module, parameter } from '../module/module.ts'
import { positive } from './linear.ts'

/** Options of `LSTM` and `GRU`. */
export interface RecurrentOptions {
  /** Layers, each of which reads what the one before it gave; default 1. */
  numLayers?: number
  /** Learn additive biases; default true. */
  bias?: boolean
  /** Inputs and outputs are (B, T, …) instead of (T, B, …); states are not. Default: false. */
  batchFirst?: boolean
  /** Probability of dropping an element of what a layer gives to the next one; default 0. */
  dropout?: number
  /** Read the sequence from its end as well, with weights of its own, and give both side by side; default false. */
  bidirectional?: boolean
}

/** Options of `RNN`. */
export interface RNNOptions extends RecurrentOptions {
  /** What follows the sum; default 'tanh'. */
  nonlinearity?: 'tanh' | 'relu'
}

type Kind = Parameters<typeof recurrence>[0]

const NAMES: Names<RecurrentOptions> = { numLayers: 1, bias: 1, batchFirst: 1, dropout: 1, bidirectional: 1 }

/** One direction of a layer: its parameters by PyTorch's names without their ends. */
interface Weights {
  readonly weight_ih: Tensor
  readonly weight_hh: Tensor
  readonly bias_ih: Tensor | undefined
  readonly bias_hh: Tensor | undefined
}

/** What the inputs contribute to all gates, biases included, and the bias that a GRU has inside of a gate. */
function gatesOf(kind: Kind, x: Tensor, w: Weights): { gates: Tensor; inner: Tensor | undefined } {
  const size = w.weight_hh.shape[1]
  const { bias_ih: ih, bias_hh: hh } = w
  if (kind !== 'gru') return { gates: linear(x, w.weight_ih, ih && hh ? ih.add(hh) : null), inner: undefined }
  if (!ih || !hh)
    return { gates: linear(x, w.weight_ih), inner: zeros([size], { dtype: x.dtype, device: x.backend }) }
  const bias = cat(
    [ih.narrow(0, 0, 2 * size).add(hh.narrow(0, 0, 2 * size)), ih.narrow(0, 2 * size, size)],
    0,
  )
  return { gates: linear(x, w.weight_ih, bias), inner: hh.narrow(0, 2 * size, size) }
}

/** Weights and biases start uniform within ±1/√hiddenSize, as in PyTorch. */
function reset(module: Module, hiddenSize: number): void {
  const bound = 1 / Math.sqrt(hiddenSize)
  for (const p of module.parameters()) init.uniform_(p, -bound, bound)
}

const zerosLike = (x: Tensor, shape: readonly number[]): Tensor =>
  zeros(shape, { dtype: x.dtype, device: x.backend })

function expectState(op: string, name: string, state: unknown, shape: readonly number[]): Tensor {
  if (!(state instanceof Tensor))
    throw new ValueError(`${op}: the state ${name} must be a tensor, got ${describeValue(state)}`)
  if (state.shape.join() !== shape.join())
    throw new ShapeError(`${op}: the state ${name} is ${show(state.shape)}; expected ${show(shape)}`)
  return state
}

/** What RNN, LSTM and GRU have in common. */
abstract class Recurrent extends Module {
  /** The size of the input's last dim. */
  readonly inputSize: number
  /** The size of a state. */
  readonly hiddenSize: number
  /** How many layers there are. */
  readonly numLayers: number
  /** Whether biases are learned. */
  readonly bias: boolean
  /** Whether inputs and outputs are (B, T, …). */
  readonly batchFirst: boolean
  /** Probability of dropping an element between layers. */
  readonly dropout: number
  /** Whether the sequence is read from its end as well. */
  readonly bidirectional: boolean
  readonly #kind: Kind;

  /**
   * The parameters by PyTorch's names: of layer k `weight_ih_l{k}` (gates · hiddenSize, the layer's input size), `weight_hh_l{k}`
   * (gates · hiddenSize, hiddenSize), `bias_ih_l{k}` and `bias_hh_l{k}`; those of the direction backwards end in `_reverse`.
   */
  [name: `weight_${string}` | `bias_${string}`]: Tensor

  constructor(
    op: string,
    kind: Kind,
    gates: number,
    inputSize: number,
    hiddenSize: number,
    options: RecurrentOptions,
  ) {
    super()
    const { numLayers = 1, bias = true, batchFirst = false, dropout = 0, bidirectional = false } = options
    positive(op, { inputSize, hiddenSize, numLayers })
    if (!(dropout >= 0 && dropout <= 1))
      throw new ValueError(`${op}: dropout must lie within 0 … 1, got ${describeValue(dropout)}`)
    this.#kind = kind
    this.inputSize = inputSize
    this.hiddenSize = hiddenSize
    this.numLayers = numLayers
    this.bias = bias
    this.batchFirst = batchFirst
    this.dropout = dropout
    this.bidirectional = bidirectional
    const own = this as Record<string, unknown>
    for (const [layer, end] of this.#places()) {
      const size = layer === 0 ? inputSize : hiddenSize * (bidirectional ? 2 : 1)
      own[`weight_ih_${end}`] = parameter(zeros([gates * hiddenSize, size]))
      own[`weight_hh_${end}`] = parameter(zeros([gates * hiddenSize, hiddenSize]))
      if (!bias) continue
      own[`bias_ih_${end}`] = parameter(zeros([gates * hiddenSize]))
      own[`bias_hh_${end}`] = parameter(zeros([gates * hiddenSize]))
    }
    this.resetParameters()
  }

  /** The layers' directions, in the order of states, and how the names of their parameters end. */
  #places(): [layer: number, end: string, reverse: boolean][] {
    return Array.from({ length: this.numLayers }, (_, k) => k).flatMap((k) => [
      [k, `l${k}`, false] as [number, string, boolean],
      ...(this.bidirectional ? [[k, `l${k}_reverse`, true] as [number, string, boolean]] : []),
    ])
  }

  #weights(end: string): Weights {
    const own = this as unknown as Record<string, Tensor>
    return {
      weight_ih: own[`weight_ih_${end}`],
      weight_hh: own[`weight_hh_${end}`],
      bias_ih: own[`bias_ih_${end}`],
      bias_hh: own[`bias_hh_${end}`],
    }
  }

  /** Draws the initial values again. */
  resetParameters(): void {
    reset(this, this.hiddenSize)
  }

  /** @internal Outputs (T, B, directions · H) or as the input lies, and the last h, and c, of every layer and direction. */
  protected run(x: Tensor, states: readonly unknown[], names: readonly string[]): Tensor[] {
    const op = this.constructor.name
    expectTensor(op, x)
    const form = this.batchFirst ? '(B, T, inputSize)' : '(T, B, inputSize)'
    if (x.rank < 2 || x.rank > 3 || x.shape[x.rank - 1] !== this.inputSize)
      throw new ShapeError(
        `${op}: the input ${show(x.shape)} must be ${form} or (T, inputSize) with inputSize = ${this.inputSize}`,
      )
    const alone = x.rank === 2
    const batchAt = alone ? 1 : this.batchFirst ? 0 : 1
    const timeFirst = alone || !this.batchFirst
    let input = alone ? x.unsqueeze(1) : x
    const [steps, batch] = [input.shape[1 - batchAt], input.shape[batchAt]]
    if (steps === 0) throw new ShapeError(`${op}: the input ${show(x.shape)} has no steps`)
    const places = this.#places()
    const shape = [places.length, batch, this.hiddenSize]
    const given = states.map((state, i) => {
      if (state === undefined || state === null) return null
      const whole = expectState(op, names[i], state, alone ? [shape[0], shape[2]] : shape)
      return alone ? whole.unsqueeze(1) : whole
    })
    const last: Tensor[][] = states.map(() => [])
    let outputs: Tensor[] = []
    for (const [n, [layer, end, reverse]] of places.entries()) {
      const weights = this.#weights(end)
      const { gates, inner } = gatesOf(this.#kind, input, weights)
      const whole = timeFirst ? gates : gates.transpose(0, 1)
      const first = given.map((all) => all?.select(0, n) ?? zerosLike(gates, [batch, this.hiddenSize]))
      const extra = inner ?? first[1]
      const made = recurrence(
        this.#kind,
        extra ? [whole, weights.weight_hh, first[0], extra] : [whole, weights.weight_hh, first[0]],
        { reverse, batchFirst: !timeFirst },
      )
      for (const [i, list] of last.entries())
        list.push((made[i] as Tensor).select(0, reverse ? 0 : steps - 1))
      outputs.push(timeFirst ? made[0] : made[0].transpose(0, 1))
      if (outputs.length < (this.bidirectional ? 2 : 1)) continue
      input = outputs.length === 1 ? outputs[0] : cat(outputs, 2)
      outputs = []
      if (layer < this.numLayers - 1) input = dropout(input, this.dropout, this.training)
    }
    const all = last.map((list) => stack(list))
    return alone ? [input.squeeze(1), ...all.map((t) => t.squeeze(1))] : [input, ...all]
  }

  override extraRepr(): string {
    const { inputSize, hiddenSize } = this
    const others = [
      ...(this.numLayers === 1 ? [] : [`numLayers=${this.numLayers}`]),
      ...(this.bias ? [] : ['bias=false']),
      ...(this.batchFirst ? ['batchFirst=true'] : []),
      ...(this.dropout === 0 ? [] : [`dropout=${this.dropout}`]),
      ...(this.bidirectional ? ['bidirectional=true'] : []),
    ]
    return [`inputSize=${inputSize}`, `hiddenSize=${hiddenSize}`, ...others].join(', ')
  }
}

/** @throws ValueError for a nonlinearity that is none. */
function kindOf(op: string, nonlinearity: string): Kind {
  if (nonlinearity !== 'tanh' && nonlinearity !== 'relu')
    throw new ValueError(`${op}: nonlinearity must be 'tanh' or 'relu', got ${describeValue(nonlinearity)}`)
  return `rnn_${nonlinearity}`
}

/**
 * A recurrent network (Elman 1990), as PyTorch's: hₜ = tanh(W_ih xₜ + b_ih + W_hh hₜ₋₁ + b_hh), or relu of it, in layers. Takes
 * (T, B, inputSize), with `batchFirst` (B, T, inputSize), or (T, inputSize), and gives `[output, hn]`: the states of the last layer
 * at every step, (T, B, hiddenSize), and of every layer at the last one, (numLayers, B, hiddenSize); both directions' side by
 * side, and in turn, where it is bidirectional.
 *
 * @throws ValueError for sizes and options out of range; `forward` throws ShapeError for what does not fit.
 * @example
 * const rnn = new RNN(10, 20, { numLayers: 2 })
 * const [output, hn] = rnn.forward(randn([5, 3, 10]))
 * output.shape // → 5,3,20
 * hn.shape // → 2,3,20
 */
export class RNN extends Recurrent {
  constructor(inputSize: number, hiddenSize: number, options: RNNOptions = {}) {
    const { nonlinearity = 'tanh', ...rest } = expectOptions('RNN', options, { ...NAMES, nonlinearity: 1 })
    super('RNN', kindOf('RNN', nonlinearity), 1, inputSize, hiddenSize, rest)
  }

  /** `h`: the first states, (numLayers · directions, B, hiddenSize); zeros if not given. */
  forward(x: Tensor, h?: Tensor | null): [output: Tensor, hn: Tensor] {
    const [output, hn] = this.run(x, [h], ['h'])
    return [output, hn]
  }
}

/**
 * Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000), as PyTorch's: with gates i, f, o = σ(W x + b + U h + b′)
 * and g = tanh of the same, cₜ = f ∘ cₜ₋₁ + i ∘ g and hₜ = o ∘ tanh(cₜ), in layers. Takes (T, B, inputSize), with `batchFirst`
 * (B, T, inputSize), or (T, inputSize), and gives `[output, [hn, cn]]`: the states h of the last layer at every step,
 * (T, B, hiddenSize), and h and c of every layer at the last one, (numLayers, B, hiddenSize); both directions' side by side, and in
 * turn, where it is bidirectional.
 *
 * @throws ValueError for sizes and options out of range; `forward` throws ShapeError for what does not fit.
 * @example
 * const lstm = new LSTM(10, 20, { numLayers: 2, batchFirst: true })
 * const [output, [hn, cn]] = lstm.forward(randn([3, 5, 10]))
 * output.shape // → 3,5,20
 * cn.shape // → 2,3,20
 * const [next] = lstm.forward(randn([3, 1, 10]), [hn, cn]) // goes on from there
 */
export class LSTM extends Recurrent {
  constructor(inputSize: number, hiddenSize: number, options: RecurrentOptions = {}) {
    super('LSTM', 'lstm', 4, inputSize, hiddenSize, expectOptions('LSTM', options, NAMES))
  }

  /** `state`: the first h and c, each (numLayers · directions, B, hiddenSize); zeros if not given. */
  forward(
    x: Tensor,
    state?: readonly [h: Tensor, c: Tensor] | null,
  ): [output: Tensor, state: [hn: Tensor, cn: Tensor]] {
    const [output, hn, cn] = this.run(x, pairOf('LSTM', state), ['h', 'c'])
    return [output, [hn, cn]]
  }
}

/** @throws ValueError for what is no pair of states. */
function pairOf(op: string, state: unknown): readonly unknown[] {
  if (state === undefined || state === null) return [undefined, undefined]
  if (!Array.isArray(state) || state.length !== 2)
    throw new ValueError(`${op}: the state is [h, c], got ${describeValue(state)}`)
  return state
}

/**
 * Gated recurrent units (Cho et al. 2014), as PyTorch's: with gates r, z = σ(W x + b + U h + b′) and n = tanh(W x + b + r ∘ (U h + b′)),
 * hₜ = (1 − z) ∘ n + z ∘ hₜ₋₁, in layers. Takes (T, B, inputSize), with `batchFirst` (B, T, inputSize), or (T, inputSize), and gives
 * `[output, hn]`: the states of the last layer at every step, (T, B, hiddenSize), and of every layer at the last one, (numLayers,
 * B, hiddenSize); both directions' side by side, and in turn, where it is bidirectional.
 *
 * @throws ValueError for sizes and options out of range; `forward` throws ShapeError for what does not fit.
 * @example
 * const gru = new GRU(10, 20, { bidirectional: true })
 * const [output, hn] = gru.forward(randn([5, 3, 10]))
 * output.shape // → 5,3,40
 * hn.shape // → 2,3,20
 */
export class GRU extends Recurrent {
  constructor(inputSize: number, hiddenSize: number, options: RecurrentOptions = {}) {
    super('GRU', 'gru', 3, inputSize, hiddenSize, expectOptions('GRU', options, NAMES))
  }

  /** `h`: the first states, (numLayers · directions, B, hiddenSize); zeros if not given. */
  forward(x: Tensor, h?: Tensor | null): [output: Tensor, hn: Tensor] {
    const [output, hn] = this.run(x, [h], ['h'])
    return [output, hn]
  }
}

/** Options of `LSTMCell` and `GRUCell`. */
export interface RecurrentCellOptions {
  /** Learn additive biases; default true. */
  bias?: boolean
}

/** Options of `RNNCell`. */
export interface RNNCellOptions extends RecurrentCellOptions {
  /** What follows the sum; default 'tanh'. */
  nonlinearity?: 'tanh' | 'relu'
}

/** One step of a recurrence. */
abstract class RecurrentCell extends Module {
  /** The size of the input's last dim. */
  readonly inputSize: number
  /** The size of a state. */
  readonly hiddenSize: number
  /** The weights of the input, (gates · hiddenSize, inputSize). */
  weight_ih: Tensor
  /** The weights of the state, (gates · hiddenSize, hiddenSize). */
  weight_hh: Tensor
  /** What is added to the input's part, (gates · hiddenSize), or null. */
  bias_ih: Tensor | null
  /** What is added to the state's part, (gates · hiddenSize), or null. */
  bias_hh: Tensor | null
  readonly #kind: Kind

  constructor(
    op: string,
    kind: Kind,
    gates: number,
    inputSize: number,
    hiddenSize: number,
    { bias = true }: RecurrentCellOptions,
  ) {
    super()
    positive(op, { inputSize, hiddenSize })
    this.inputSize = inputSize
    this.hiddenSize = hiddenSize
    this.#kind = kind
    this.weight_ih = parameter(zeros([gates * hiddenSize, inputSize]))
    this.weight_hh = parameter(zeros([gates * hiddenSize, hiddenSize]))
    this.bias_ih = bias ? parameter(zeros([gates * hiddenSize])) : null
    this.bias_hh = bias ? parameter(zeros([gates * hiddenSize])) : null
    this.resetParameters()
  }

  /** Draws the initial values again. */
  resetParameters(): void {
    reset(this, this.hiddenSize)
  }

  /** @internal The next h, and c. */
  protected run(x: Tensor, states: readonly unknown[], names: readonly string[]): Tensor[] {
    const op = this.constructor.name
    expectTensor(op, x)
    if (x.rank < 1 || x.rank > 2 || x.shape[x.rank - 1] !== this.inputSize)
      throw new ShapeError(
        `${op}: the input ${show(x.shape)} must be (B, inputSize) or (inputSize) with inputSize = ${this.inputSize}`,
      )
    const alone = x.rank === 1
    const input = x.reshape([1, alone ? 1 : x.shape[0], this.inputSize])
    const { weight_ih, weight_hh, bias_ih, bias_hh } = this
    const weights = { weight_ih, weight_hh, bias_ih: bias_ih ?? undefined, bias_hh: bias_hh ?? undefined }
    const { gates, inner } = gatesOf(this.#kind, input, weights)
    const shape = [input.shape[1], this.hiddenSize]
    const first = states.map((state, i) => {
      if (state === undefined || state === null) return zerosLike(gates, shape)
      const given = expectState(op, names[i], state, alone ? [this.hiddenSize] : shape)
      return alone ? given.unsqueeze(0) : given
    })
    const extra = inner ?? first[1]
    const made = recurrence(
      this.#kind,
      extra ? [gates, weight_hh, first[0], extra] : [gates, weight_hh, first[0]],
      { reverse: false, batchFirst: false },
    )
    return states.map((_, i) => {
      const state = (made[i] as Tensor).squeeze(0)
      return alone ? state.squeeze(0) : state
    })
  }

  override extraRepr(): string {
    const bias = this.bias_ih ? '' : ', bias=false'
    return `inputSize=${this.inputSize}, hiddenSize=${this.hiddenSize}${bias}`
  }
}

/**
 * One step of a recurrent network, h′ = tanh(W_ih x + b_ih + W_hh h + b_hh) or relu of it: x (B, inputSize) and h (B, hiddenSize), or
 * both without B, give h′ of h's shape.
 *
 * @throws ValueError for sizes and options out of range; `forward` throws ShapeError for what does not fit.
 * @example
 * new RNNCell(10, 20).forward(randn([3, 10])).shape // → 3,20
 */
export class RNNCell extends RecurrentCell {
  constructor(inputSize: number, hiddenSize: number, options: RNNCellOptions = {}) {
    const { nonlinearity = 'tanh', ...rest } = expectOptions('RNNCell', options, { bias: 1, nonlinearity: 1 })
    super('RNNCell', kindOf('RNNCell', nonlinearity), 1, inputSize, hiddenSize, rest)
  }

  /** `h`: the state before, (B, hiddenSize) or (hiddenSize); zeros if not given. */
  forward(x: Tensor, h?: Tensor | null): Tensor {
    return this.run(x, [h], ['h'])[0]
  }
}

/**
 * One step of an LSTM: x (B, inputSize) and the states h and c (B, hiddenSize), or all without B, give the next `[h, c]`.
 *
 * @throws ValueError for sizes and options out of range; `forward` throws ShapeError for what does not fit.
 * @example
 * const [h, c] = new LSTMCell(10, 20).forward(randn([3, 10]))
 * h.shape // → 3,20
 */
export class LSTMCell extends RecurrentCell {
  constructor(inputSize: number, hiddenSize: number, options: RecurrentCellOptions = {}) {
    super('LSTMCell', 'lstm', 4, inputSize, hiddenSize, expectOptions('LSTMCell', options, { bias: 1 }))
  }

  /** `state`: h and c before, each (B, hiddenSize) or (hiddenSize); zeros if not given. */
  forward(x: Tensor, state?: readonly [h: Tensor, c: Tensor] | null): [h: Tensor, c: Tensor] {
    const [h, c] = this.run(x, pairOf('LSTMCell', state), ['h', 'c'])
    return [h, c]
  }
}

/**
 * One step of gated recurrent units: x (B, inputSize) and h (B, hiddenSize), or both without B, give the next h of that shape.
 *
 * @throws ValueError for sizes and options out of range; `forward` throws ShapeError for what does not fit.
 * @example
 * new GRUCell(10, 20).forward(randn([3, 10]), zeros([3, 20])).shape // → 3,20
 */
export class GRUCell extends RecurrentCell {
  constructor(inputSize: number, hiddenSize: number, options: RecurrentCellOptions = {}) {
    super('GRUCell', 'gru', 3, inputSize, hiddenSize, expectOptions('GRUCell', options, { bias: 1 }))
  }

  /** `h`: the state before, (B, hiddenSize) or (hiddenSize); zeros if not given. */
  forward(x: Tensor, h?: Tensor | null): Tensor {
    return this.run(x, [h], ['h'])[0]
  }
}
