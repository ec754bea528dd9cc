import { join } from 'node:path'
import { type Backend, DTypeError, data, grad, isFloat, layout, scope, type Tensor } from '@tilegrad/core'
import { bind } from './arguments.ts'
import { checkDropout, checkDropoutGradient, checkSelection, isRandom } from './choices.ts'
import { CLOSE, DOUBLE, difference, EXACT, GRADIENT, halves, type Tolerance } from './compare.ts'
import { dtypeOf, isTensor, type OpCase, readJson, Skip, type TensorEntry, Tensors } from './manifest.ts'
import { failed, type Outcome, PASSED, type Report, skipped } from './report.ts'
import { type TorchOp, torchOp } from './torch-ops.ts'

/** Runs the cases of `ops.json` whose name matches. */
export async function runOps(dir: string, backend: Backend, only: RegExp, report: Report): Promise<void> {
  const manifest = readJson(join(dir, 'ops.json')) as readonly OpCase[] | { cases: readonly OpCase[] }
  const cases = 'cases' in manifest ? manifest.cases : manifest
  const tensors = new Tensors(join(dir, 'ops.safetensors'), backend)
  for (const [i, c] of cases.entries()) {
    const name = `${c.op}.${i}`
    if (only.test(name)) report.add(name, await runCase(c, tensors))
  }
}

async function runCase(c: OpCase, tensors: Tensors): Promise<Outcome> {
  const op = torchOp(c.op)
  if (!op) return skipped(`no operator ${c.op} here`)
  let done: Computed | null = null
  try {
    done = scope(() => compute(c, op, tensors))
    const why = (await checkOutputs(c, op, done, tensors)) ?? (await checkGradients(c, op, done, tensors))
    return why === null ? PASSED : failed(why)
  } catch (error) {
    if (error instanceof Skip) return skipped(error.message)
    if (error instanceof DTypeError && error.message.includes('float64 is not stored'))
      return skipped('no float64 on GPUs')
    return failed(error instanceof Error ? `${error.name}: ${error.message}` : String(error))
  } finally {
    for (const t of done?.live ?? []) t.dispose()
  }
}

interface Computed {
  readonly input: Tensor | null
  readonly outputs: readonly Tensor[]
  readonly cotangents: readonly Tensor[]
  readonly grads: readonly (Tensor | null)[]
  readonly tolerance: Tolerance
  /** All of these, to be freed. */
  readonly live: readonly Tensor[]
}

/** The outputs and gradients of a case. */
function compute(c: OpCase, op: TorchOp, tensors: Tensors): Computed {
  const leaves: Tensor[] = []
  const input = tensors.decode(c.input, leaves)
  const args = c.args.list.map((e) => tensors.decode(e, leaves))
  const kwargs = Object.fromEntries(Object.entries(c.kwargs).map(([k, e]) => [k, tensors.decode(e, leaves)]))
  const bound = bind(c.op, op.signature, [input, ...args], kwargs)
  const result = op.run(bound)
  const outputs = isTensor(result) ? [result] : [...result]
  const cotangents = (c.cotangents ?? []).map((e) => tensors.decode(e, []) as Tensor)
  const grads = c.grads ? differentiate(outputs, cotangents, leaves) : []
  const first = isTensor(input) ? input : null
  const live = [first, ...outputs, ...cotangents, ...grads].filter((t) => t !== null)
  const tolerance = typeof op.tolerance === 'function' ? op.tolerance(bound) : op.tolerance
  return { input: first, outputs, cotangents, grads, tolerance, live }
}

export function differentiate(
  outputs: readonly Tensor[],
  cotangents: readonly Tensor[],
  leaves: readonly Tensor[],
): (Tensor | null)[] {
  const floating = outputs.filter((t) => isFloat(t.dtype))
  if (cotangents.length !== floating.length)
    throw new Error(`${floating.length} floating outputs, but ${cotangents.length} cotangents`)
  const used = floating.flatMap((y, i) => (y.requiresGrad ? [{ y, d: cotangents[i] }] : []))
  if (used.length === 0) return leaves.map(() => null)
  const [ys, gradOutputs] = [used.map(({ y }) => y), used.map(({ d }) => d)]
  return grad(ys, leaves, { gradOutputs, allowUnused: true, retainGraph: true })
}

export function mismatch(t: Tensor, want: TensorEntry): string | null {
  if (!layout.sameShape(t.shape, want.shape))
    return `shape [${t.shape.join(', ')}]; expected [${want.shape.join(', ')}]`
  const dtype = dtypeOf(want.dtype)
  return t.dtype === dtype ? null : `dtype ${t.dtype}; expected ${dtype}`
}

export const allowed = (t: Tensor, tolerance: Tolerance): Tolerance =>
  t.dtype === 'float64' ? DOUBLE : (halves[t.dtype] ?? (isFloat(t.dtype) ? tolerance : EXACT))

/** Gradients of 16 bits have come through the roundings of both passes. */
function gradientAllowed(g: Tensor, outputs: Tolerance): Tolerance {
  const { rtol, atol, cancels = false } = allowed(g, gradientTolerance(outputs))
  const passes = g.dtype in halves ? 2 : 1
  return { rtol: passes * rtol, atol: passes * atol, cancels }
}

const gradientTolerance = (outputs: Tolerance): Tolerance => (outputs === CLOSE ? GRADIENT : outputs)

async function checkOutputs(
  c: OpCase,
  op: TorchOp,
  done: Computed,
  tensors: Tensors,
): Promise<string | null> {
  const { input, outputs } = done
  if (outputs.length !== c.outputs.length) return `${outputs.length} outputs; expected ${c.outputs.length}`
  for (const [i, want] of c.outputs.entries()) {
    const t = outputs[i]
    let why = mismatch(t, want)
    if (why === null && op.choice === 'dropout' && isRandom(c))
      why = await checkDropout(c, input as Tensor, t)
    else if (why === null)
      why = difference(await data(t), tensors.values(want.tensor), t.shape, allowed(t, done.tolerance))
    if (why !== null && op.choice === 'selection' && i === 1 && !mismatch(t, want))
      why = await checkSelection(c, input as Tensor, outputs[0], t)
    if (why !== null) return `output ${i}: ${why}`
  }
  return null
}

async function checkGradients(
  c: OpCase,
  op: TorchOp,
  done: Computed,
  tensors: Tensors,
): Promise<string | null> {
  for (const [i, want] of (c.grads ?? []).entries()) {
    const g = done.grads[i] ?? null
    if (want === null) continue
    const expected = tensors.values(want.tensor)
    let why: string | null
    if (g === null)
      why = expected.every((v) => v === 0) ? null : 'there is none; PyTorch has one other than 0'
    else if (op.choice === 'dropout' && isRandom(c))
      why =
        mismatch(g, want) ??
        (await checkDropoutGradient(done.input as Tensor, done.outputs[0], done.cotangents[0], g))
    else
      why =
        mismatch(g, want) ?? difference(await data(g), expected, g.shape, gradientAllowed(g, done.tolerance))
    if (why !== null) return `gradient ${i}: ${why}`
  }
  return null
}
