import { expectFunction, expectOptions } from '../checks.ts'
import { capturing } from '../dispatch/capturing.ts'
import { type Casting, casting, withCasting } from '../dispatch/casting.ts'
import { GradError, show } from '../errors.ts'
import { pager } from '../offload/pager.ts'
import { storeOf } from '../offload/store.ts'
import { getRngState, type RngState, setRngState } from '../random.ts'
import { sameShape } from '../tensor/layout.ts'
import { tensorsIn } from '../tensor/memory.ts'
import { collect, drop, refuseAsync, settled, track } from '../tensor/scope.ts'
import { Tensor } from '../tensor/tensor.ts'
import { runAgain } from './again.ts'
import { enableGrad, type GradNode, gradEnabled, type Replay, recordedNodes } from './tape.ts'

/** Options of `checkpoint`, after its inputs. */
export interface CheckpointOptions {
  /**
   * Moves the inputs out of the device's memory until the backward pass needs them: to 'host' for arrays of the host, or
   * to a file in the folder of this path. On a GPU they leave once they have been read, for which something has to be
   * awaited: `await offloaded()`.
   */
  offload?: 'host' | (string & {})
}

/**
 * Runs `fn(...inputs)` and frees its intermediates instead of keeping them for the backward pass, which runs `fn` again
 * when it gets there (Chen et al. 2016). A stack of L layers, each in a checkpoint, stores L inputs and the
 * intermediates of one layer, for the time of one more forward pass.
 *
 * Gradients are the same bits as without, in `inputs` and in every parameter that `fn` uses: random numbers are drawn
 * again from the same state. `fn` must compute the same each time, and tensors without gradients that it reads belong
 * into `inputs` if the graph outlives their scope. Checkpoints nest. As in `scope`, only what `fn` returns (tensors
 * anywhere in arrays, maps and plain objects) and what is kept survives. With `{ offload: 'host' }` as the last argument
 * the inputs wait for the backward pass outside of the device's memory.
 *
 * @throws GradError if `fn` is asynchronous; in the backward pass, if what it reads was modified in place since, or if
 * it does something else the second time.
 * @example
 * const [w, x] = [randn([8, 8], { requiresGrad: true }), randn([4, 8])]
 * const y = checkpoint((x) => dropout(x.matmul(w).gelu(), 0.1).matmul(w), x)
 * y.sum().backward()
 * w.grad?.shape // → 8,8
 */
export function checkpoint<I extends readonly Tensor[], T>(fn: (...inputs: I) => T, ...inputs: I): T
/**
 * Runs `fn(...inputs)` as `checkpoint(fn, ...inputs)` does, with options after the inputs: with `{ offload: 'host' }`, or the
 * path of a folder, the inputs wait for the backward pass outside of the device's memory.
 *
 * @throws GradError as `checkpoint(fn, ...inputs)`; ValueError for a folder that cannot be written; TilegradError if the disk
 * is full.
 * @example
 * const [w, x] = [randn([8, 8], { requiresGrad: true }), randn([4, 8]).mul(2)]
 * checkpoint((x) => x.matmul(w).gelu(), x, { offload: 'host' }).sum().backward()
 * w.grad?.shape // → 8,8
 */
export function checkpoint<I extends readonly Tensor[], T>(
  fn: (...inputs: I) => T,
  ...args: readonly [...I, CheckpointOptions]
): T
export function checkpoint<I extends readonly Tensor[], T>(
  fn: (...inputs: I) => T,
  ...args: readonly (Tensor | CheckpointOptions)[]
): T {
  expectFunction('checkpoint', fn)
  const last = args.at(-1)
  const options = last === undefined || last instanceof Tensor ? {} : last
  const inputs = (options === last ? args.slice(0, -1) : args) as unknown as I
  const { offload } = expectOptions('checkpoint', options, { offload: 1 })
  const store = offload === undefined ? null : storeOf('checkpoint', 'offload', offload)
  if (!gradEnabled()) return fn(...inputs)
  const rng = getRngState()
  const { result, nodes, made } = record(fn, inputs)
  const results = settled(made, () => tensorsIn(result))
  const inside = new Set([...made, ...nodes.flatMap((node) => node.outputs)])
  const outside = new Map<Tensor, number>()
  for (const node of nodes) for (const t of node.inputs) if (!inside.has(t)) outside.set(t, t.storage.version)
  const replay = new Replayed(fn, inputs, rng, outside, signature(nodes))
  nodes.forEach((node, index) => {
    node.replay = { of: replay, index }
    node.owned = null
  })
  for (const t of made) {
    if (results.has(t) || t.kept) track(t)
    else t.release('checkpoint()')
  }
  // Parameters are used elsewhere as well. A compiled step has its own plan of what leaves when.
  if (store && !capturing()) for (const t of inputs) if (t.gradFn || !t.requiresGrad) pager.moveOut(t, store)
  return result
}

interface Recorded<T> {
  result: T
  nodes: readonly GradNode[]
  made: readonly Tensor[]
}

function record<I extends readonly Tensor[], T>(fn: (...inputs: I) => T, inputs: I): Recorded<T> {
  const { result, made } = collect(() =>
    recordedNodes(() => {
      const result = fn(...inputs)
      refuseAsync('checkpoint', result, 'it must be synchronous, to run again within backward()')
      return result
    }),
  )
  return { ...result, made: made as Tensor[] }
}

/** What must be equal the second time. */
const signature = (nodes: readonly GradNode[]): { name: string; shapes: readonly (readonly number[])[] }[] =>
  nodes.map(({ name, outputs }) => ({ name, shapes: outputs.map((t) => t.shape) }))

class Replayed<I extends readonly Tensor[]> implements Replay {
  readonly inputs: I
  readonly #fn: (...inputs: I) => unknown
  readonly #rng: RngState
  /** Tensors from elsewhere that the function's operators read, and their versions. */
  readonly #outside: ReadonlyMap<Tensor, number>
  readonly #expected: ReturnType<typeof signature>
  readonly #casting: Casting | null = casting.now

  constructor(
    fn: (...inputs: I) => unknown,
    inputs: I,
    rng: RngState,
    outside: ReadonlyMap<Tensor, number>,
    expected: ReturnType<typeof signature>,
  ) {
    this.inputs = inputs
    this.#fn = fn
    this.#rng = rng
    this.#outside = outside
    this.#expected = expected
  }

  run(): ReturnType<Replay['run']> {
    for (const [t, version] of this.#outside) {
      if (t.storage.version !== version)
        throw new GradError(
          `checkpoint: a tensor ${show(t.shape)} that its function reads was modified in place after it ran, and backward() runs it again; modify it after backward()`,
        )
    }
    const rng = getRngState()
    setRngState(this.#rng)
    try {
      const again = (): Recorded<unknown> => runAgain(() => enableGrad(() => record(this.#fn, this.inputs)))
      const { nodes, made } = this.#casting?.afresh(again) ?? withCasting(null, again)
      const i = this.#expected.findIndex((e, n) => !nodes[n] || !alike(e, nodes[n]))
      if (i >= 0 || nodes.length !== this.#expected.length) {
        drop(made, 'checkpoint()')
        const { name, shapes } = this.#expected[i] ?? { name: 'nothing', shapes: [] }
        const then = nodes[i < 0 ? this.#expected.length : i]
        throw new GradError(
          `checkpoint: its function did something else the second time: ${describe(name, shapes)}, then ${then ? describe(then.name, signature([then])[0].shapes) : 'nothing'}; it must depend on its inputs and on manualSeed's generator alone`,
        )
      }
      return { nodes, made }
    } finally {
      setRngState(rng)
    }
  }
}

const describe = (name: string, shapes: readonly (readonly number[])[]): string =>
  [name, ...shapes.map((s) => show(s))].join(' ')

const alike = (e: ReturnType<typeof signature>[number], node: GradNode): boolean =>
  e.name === node.name &&
  e.shapes.length === node.outputs.length &&
  e.shapes.every((s, i) => sameShape(s, node.outputs[i].shape))
