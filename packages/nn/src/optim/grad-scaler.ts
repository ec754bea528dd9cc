import {
  applyProgramInto,
  applyProgramIntoEach,
  type Backend,
  describeValue,
  expr as e,
  expectOptions,
  expectTensor,
  to as moveTensor,
  mul,
  type Names,
  namedProgram,
  noGrad,
  Printable,
  program,
  scope,
  Tensor,
  tensor,
  totalNorm,
  ValueError,
} from '@tilegrad/core'
import { eachRun } from '@tilegrad/core/kernel'
import { guarded, guardNumbers, numberAt, refuseHalf } from './guard.ts'
import { Optimizer } from './optimizer.ts'

/** Options of `GradScaler`. */
export interface GradScalerOptions {
  /** The first scale. Default: 2¹⁶. */
  initScale?: number
  /** What the scale is multiplied by after `growthInterval` steps without an overflow. Default: 2. */
  growthFactor?: number
  /** What the scale is multiplied by after an overflow. Default: 0.5. */
  backoffFactor?: number
  /** So many steps in a row without an overflow let the scale grow. Default: 2000. */
  growthInterval?: number
  /** Without it every method does what a program without a scaler does. Default: true. */
  enabled?: boolean
}

/** All that a `GradScaler` needs to continue. Tensors are the live ones; numbers before anything was scaled. */
export interface GradScalerStateDict {
  /** The scale. */
  scale: Tensor | number
  /** How many steps in a row had no overflow. */
  growthTracker: Tensor | number
  /** What the scale is multiplied by when it grows. */
  growthFactor: number
  /** What the scale is multiplied by after an overflow. */
  backoffFactor: number
  /** So many steps in a row without an overflow let the scale grow. */
  growthInterval: number
}

const OPTIONS: Names<GradScalerOptions> = {
  initScale: 1,
  growthFactor: 1,
  backoffFactor: 1,
  growthInterval: 1,
  enabled: 1,
}

/** The largest float32. */
const largest = (2 - 2 ** -23) * 2 ** 127

/** A program of the norm of all scaled gradients: 1 if that is not finite, and the inverse of the scale. */
const INSPECT = program('grad_scaler.inspect', 2, ([norm, scale]) => [
  e.select(e.and(e.le(norm, largest), e.not(e.isnan(norm))), 0, 1),
  e.div(1, scale),
])
const UNSCALE = program('grad_scaler.unscale', 2, ([g, inverse]) => e.mul(g, inverse))
const UPDATE = namedProgram(
  'grad_scaler.update',
  ['scale', 'tracker', 'found'],
  ['growth', 'backoff', 'interval'],
  ({ scale, tracker, found }, { growth, backoff, interval }) => {
    const overflow = e.gt(found, 0)
    const count = e.add(tracker, 1)
    const grows = e.ge(count, interval)
    const grown = e.mul(scale, growth)
    const next = e.select(e.and(grows, e.le(grown, largest)), grown, scale)
    return [e.select(overflow, e.mul(scale, backoff), next), e.select(e.or(overflow, grows), 0, count)]
  },
)

/** What is known of an optimiser since the last update. */
interface Entry {
  stage: 'ready' | 'unscaled' | 'stepped'
  /** See `Guard`. */
  readonly numbers: Tensor
}

/**
 * Scales losses so that gradients of float16 neither vanish nor overflow (Micikevicius et al. 2018), as PyTorch's: gradients
 * below 6·10⁻⁸ would be 0 in float16. The loss is multiplied by a large scale, the optimiser divides gradients by it again, and
 * where one of them is not finite the step is skipped and the scale halved. After `growthInterval` steps without that it is
 * doubled.
 *
 * All of it happens on the device: the scale, what was found and the skipping itself; nothing is read. A skipped step changes no
 * parameter and no state, and does not count where an optimiser counts steps. As long as the scale is a power of two and nothing
 * overflows, training is the same bits as without a scaler.
 *
 * @throws ValueError for options out of range.
 * @example
 * const model = new Linear(4, 1)
 * const optimizer = new AdamW(model.parameters(), { lr: 0.01 })
 * const scaler = new GradScaler({ initScale: 1024 })
 * const x = randn([8, 4])
 * const loss = autocast('float16', () => model.forward(x).square().mean())
 * scaler.scale(loss).backward()
 * scaler.unscale(optimizer) // only where gradients are looked at, to clip them for instance
 * clipGradNorm(model.parameters(), 1)
 * scaler.step(optimizer)
 * scaler.update()
 * optimizer.zeroGrad()
 * await scaler.getScale() // → 1024
 */
export class GradScaler extends Printable {
  /** Says whether it does anything. */
  readonly enabled: boolean
  /** What the scale is multiplied by when it grows. */
  growthFactor: number
  /** What the scale is multiplied by after an overflow. */
  backoffFactor: number
  /** So many steps in a row without an overflow let the scale grow. */
  growthInterval: number
  /** Scale and tracker before they are on a device. */
  #initial: Pick<GradScalerStateDict, 'scale' | 'growthTracker'>
  #scale: Tensor | null = null
  #tracker: Tensor | null = null
  readonly #entries = new WeakMap<object, Entry>()
  /** The optimisers that are not ready. */
  readonly #pending = new Set<Entry>()

  constructor(options: GradScalerOptions = {}) {
    super()
    const {
      initScale = 2 ** 16,
      growthFactor = 2,
      backoffFactor = 0.5,
      growthInterval = 2000,
      enabled = true,
    } = expectOptions('GradScaler', options, OPTIONS)
    validate('GradScaler', {
      scale: initScale,
      growthTracker: 0,
      growthFactor,
      backoffFactor,
      growthInterval,
    })
    this.enabled = enabled
    this.growthFactor = growthFactor
    this.backoffFactor = backoffFactor
    this.growthInterval = growthInterval
    this.#initial = { scale: initScale, growthTracker: 0 }
  }

  /**
   * Multiplies a loss, or each of several, by the scale: call `backward()` on the result.
   *
   * @throws ValueError for what is no tensor.
   */
  scale(loss: Tensor): Tensor
  /** Multiplies each of several losses by the scale. */
  scale(losses: readonly Tensor[]): Tensor[]
  scale(loss: Tensor | readonly Tensor[]): Tensor | Tensor[] {
    const losses = loss instanceof Tensor ? [loss] : loss
    if (!Array.isArray(losses))
      throw new ValueError(`GradScaler.scale: takes a loss, got ${describeValue(loss)}`)
    for (const t of losses) expectTensor('GradScaler.scale', t)
    if (!this.enabled) return loss instanceof Tensor ? loss : [...losses]
    const scaled = losses.map((t: Tensor) => mul(t, this.#on(t.backend)))
    return loss instanceof Tensor ? scaled[0] : scaled
  }

  /**
   * Divides the gradients of an optimiser's parameters by the scale, in place. `step` does so by itself; this is for looking at
   * gradients or clipping them before it.
   *
   * @throws ValueError if nothing was scaled, if it was unscaled or stepped since the last `update()`, or if it has no gradients;
   * DTypeError for gradients of float16.
   */
  unscale(optimizer: Optimizer<{ lr: number }>): void {
    if (!this.enabled) return
    const entry = this.#entry('unscale', optimizer)
    const grads = gradients('unscale', optimizer)
    this.#become('unscale', entry, 'unscaled')
    this.#inspect(grads, entry)
    noGrad(() =>
      scope(() => {
        const inverse = numberAt(entry.numbers, 1)
        applyProgramIntoEach(
          UNSCALE,
          grads.map((g) => ({ outputs: [g], inputs: [g, inverse] })),
        )
      }),
    )
  }

  /**
   * Takes a step of the optimiser with gradients divided by the scale, which has no effect if one of them is not finite.
   *
   * @throws ValueError if nothing was scaled, if it has stepped since the last `update()`, or if it has no gradients; DTypeError
   * for gradients of float16; and what the optimiser throws.
   */
  step(optimizer: Optimizer<{ lr: number }>): void {
    if (!this.enabled) {
      optimizer.step()
      return
    }
    const entry = this.#entry('step', optimizer)
    // What is computed of whole gradients before the updates cannot be scaled while these read them.
    if (entry.stage === 'ready' && optimizer.prepares) this.unscale(optimizer)
    const { stage, numbers } = entry
    const scaled = stage === 'ready'
    const grads = gradients('step', optimizer)
    this.#become('step', entry, 'stepped')
    try {
      if (scaled) this.#inspect(grads, entry)
      const used = guarded({ numbers, scaled }, () => optimizer.step())
      if (!used)
        throw new ValueError(
          `GradScaler.step: ${optimizer.constructor.name} has a step() of its own, which would not be skipped; let it call super.step(), or define update()`,
        )
    } catch (error) {
      entry.stage = stage
      throw error
    }
  }

  /**
   * Makes the scale smaller if a gradient was not finite, and larger if none was for `growthInterval` steps. Call it once after
   * the steps of all optimisers.
   *
   * @param newScale the scale to go on with instead.
   * @throws ValueError if no optimiser was unscaled or stepped since the last one.
   */
  update(newScale?: number): void {
    if (!this.enabled) return
    const entries = [...this.#pending]
    if (newScale !== undefined) {
      if (!(newScale > 0 && newScale <= largest))
        throw new ValueError(
          `GradScaler.update: the scale must be a finite number > 0, got ${describeValue(newScale)}`,
        )
    }
    eachRun(() => {
      if (this.#pending.size === 0)
        throw new ValueError(
          'GradScaler.update: no optimiser has stepped since the last update; call scaler.step(optimizer) before',
        )
      for (const entry of this.#pending) entry.stage = 'ready'
      this.#pending.clear()
    })
    const [scale, tracker] = [this.#scale, this.#tracker] as [Tensor, Tensor]
    noGrad(() =>
      scope(() => {
        const found = entries.map(({ numbers }) => numberAt(numbers, 0)).reduce((a, b) => a.maximum(b))
        const { growthFactor: growth, backoffFactor: backoff, growthInterval: interval } = this
        applyProgramInto(
          [scale, tracker],
          UPDATE,
          [scale, tracker, found],
          UPDATE.numbers({ growth, backoff, interval }),
        )
        if (newScale !== undefined) {
          scale.fill_(newScale)
          tracker.fill_(0)
        }
      }),
    )
  }

  /** Reads the scale, 1 where it is not enabled. */
  async getScale(): Promise<number> {
    if (!this.enabled) return 1
    const scale = this.#scale ?? this.#initial.scale
    return typeof scale === 'number' ? scale : scale.item()
  }

  /** The scale, the count of steps without an overflow, and the options: what `loadStateDict` takes. */
  stateDict(): GradScalerStateDict {
    const { growthFactor, backoffFactor, growthInterval } = this
    return {
      scale: this.#scale ?? this.#initial.scale,
      growthTracker: this.#tracker ?? this.#initial.growthTracker,
      growthFactor,
      backoffFactor,
      growthInterval,
    }
  }

  /**
   * Takes over what another one's `stateDict()` said, or the same with numbers in place of tensors.
   *
   * @throws ValueError for what is none.
   */
  loadStateDict(dict: GradScalerStateDict): void {
    this.checkStateDict(dict)
    const { scale, growthTracker, growthFactor, backoffFactor, growthInterval } = dict
    Object.assign(this, { growthFactor, backoffFactor, growthInterval })
    if (!this.#scale || !this.#tracker) {
      this.#initial = { scale: kept(scale), growthTracker: kept(growthTracker) }
      return
    }
    for (const [to, from] of [
      [this.#scale, scale],
      [this.#tracker, growthTracker],
    ] as const)
      noGrad(() =>
        scope(
          () => void (typeof from === 'number' ? to.fill_(from) : to.copy_(moveTensor(from, to.backend))),
        ),
      )
  }

  /** Throws what `loadStateDict` would. @internal */
  checkStateDict(dict: GradScalerStateDict): void {
    if (typeof dict !== 'object' || dict === null || !('scale' in dict))
      throw new ValueError(
        `GradScaler.loadStateDict: takes what stateDict() gave, got ${describeValue(dict)}`,
      )
    validate('GradScaler.loadStateDict', dict)
  }

  /** The scaler as text: its options, and the scale that it begins with. */
  toString(): string {
    const { growthFactor, backoffFactor, growthInterval, enabled } = this
    const { scale } = this.#initial
    const first = typeof scale === 'number' ? `initScale: ${scale}, ` : ''
    return `GradScaler (${first}growthFactor: ${growthFactor}, backoffFactor: ${backoffFactor}, growthInterval: ${growthInterval}, enabled: ${enabled})`
  }

  /** Frees the scale; it begins again with the first one. */
  dispose(): void {
    this.#scale?.dispose()
    this.#tracker?.dispose()
    this.#scale = this.#tracker = null
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  /** The scale on the device of a loss. */
  #on(backend: Backend): Tensor {
    if (!this.#scale) {
      const { scale, growthTracker } = this.#initial
      const make = (value: Tensor | number): Tensor =>
        scope(() =>
          typeof value === 'number'
            ? tensor(value, { device: backend }).keep()
            : moveTensor(value, backend).clone().keep(),
        )
      this.#scale = make(scale)
      this.#tracker = make(growthTracker)
    }
    return this.#scale
  }

  #entry(method: string, optimizer: Optimizer<{ lr: number }>): Entry {
    if (!(optimizer instanceof Optimizer))
      throw new ValueError(`GradScaler.${method}: takes an optimiser, got ${describeValue(optimizer)}`)
    if (!this.#scale)
      throw new ValueError(
        `GradScaler.${method}: nothing was scaled yet; call scaler.scale(loss).backward() before`,
      )
    let entry = this.#entries.get(optimizer)
    if (!entry) {
      entry = { stage: 'ready', numbers: guardNumbers(this.#scale.backend).keep() }
      this.#entries.set(optimizer, entry)
    }
    return entry
  }

  /** Looks whether gradients, which are scaled, are finite. */
  #inspect(grads: readonly Tensor[], { numbers }: Entry): void {
    noGrad(() =>
      scope(() => {
        const norm = totalNorm(grads)
        applyProgramInto([numberAt(numbers, 0), numberAt(numbers, 1)], INSPECT, [norm, this.#scale as Tensor])
      }),
    )
  }

  /** Goes on to the next stage, also in each replay of a compiled step. */
  #become(method: 'unscale' | 'step', entry: Entry, stage: Entry['stage']): void {
    eachRun(() => {
      if (entry.stage === 'stepped')
        throw new ValueError(
          `GradScaler.${method}: the optimiser has stepped since the last update; call scaler.update() after each step`,
        )
      if (entry.stage === stage)
        throw new ValueError(
          'GradScaler.unscale: the gradients were unscaled since the last update; unscale once, after the last backward() of a step',
        )
      entry.stage = stage
      this.#pending.add(entry)
    })
  }
}

/** @throws ValueError where there are none, DTypeError where they are of float16. */
function gradients(method: string, { paramGroups }: Optimizer<{ lr: number }>): Tensor[] {
  const grads = paramGroups.flatMap(({ params }) => params.flatMap((p) => p.grad ?? []))
  if (grads.length === 0)
    throw new ValueError(
      `GradScaler.${method}: the optimiser's parameters have no gradients; call scaler.scale(loss).backward() before`,
    )
  for (const g of grads) refuseHalf(`GradScaler.${method}`, g)
  return grads
}

const kept = (value: Tensor | number): Tensor | number =>
  typeof value === 'number' ? value : value.detach().clone().keep()

/** @throws ValueError for a number out of range. */
function validate(op: string, dict: GradScalerStateDict): void {
  const { growthFactor, backoffFactor, growthInterval } = dict
  const wrong = (name: string, value: unknown, expected: string): ValueError =>
    new ValueError(`${op}: ${name} must be ${expected}, got ${describeValue(value)}`)
  for (const [name, least] of [
    ['scale', Number.MIN_VALUE],
    ['growthTracker', 0],
  ] as const) {
    const value = dict[name]
    if (value instanceof Tensor) continue
    if (!(typeof value === 'number' && value >= least && value <= largest))
      throw wrong(
        op === 'GradScaler' ? 'initScale' : name,
        value,
        `a finite number ${least > 0 ? '> 0' : '≥ 0'}`,
      )
  }
  if (!(growthFactor > 1 && growthFactor <= largest))
    throw wrong('growthFactor', growthFactor, 'a number > 1')
  if (!(backoffFactor > 0 && backoffFactor < 1)) throw wrong('backoffFactor', backoffFactor, 'within 0 … 1')
  if (!(Number.isInteger(growthInterval) && growthInterval > 0))
    throw wrong('growthInterval', growthInterval, 'a whole number > 0')
}
