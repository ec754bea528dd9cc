/**
 * One expression over many groups of tensors with few dispatches: an optimiser's step. A dispatch can bind as many
 * buffers as the device allows (8 to 16): calls are put together until these are full. One that holds several of the
 * tensors is bound once: of AdamW's four, the moments of all parameters lie in two, and the parameters go three to
 * seven at a time. A workgroup finds its call by its number.
 *
 * Everything is bound as vectors of four; of inputs that do not begin at a multiple of four, elements are picked.
 *
 * Reference: `applyProgramIntoEach` with a launch per call, core's primitives/foreach.ts. Test: foreach.test.ts.
 */

import {
  type ElementwiseAttrs,
  type KernelOf,
  layout,
  type TypedProgram,
  typedPostOrder,
  UnsupportedOpError,
  type View,
} from '@tilegrad/core'
import type { Engine } from '../../commands/queue.ts'
import { bufferOf, type GpuBuffer } from '../../device/buffers.ts'
import { block, list, numbers, several, u32, type ValuesOf } from '../../wgsl/block.ts'
import { type Lowered, lower } from '../../wgsl/lowering.ts'
import { mathCode } from '../../wgsl/math.ts'
import type { Binding, Shader } from '../../wgsl/shader.ts'
import { grid } from '../layout.ts'

const workgroup = 256
/** Elements of a workgroup. */
const span = 4 * workgroup
/** The most calls of a dispatch, with which code grows. */
const mostCalls = 15

/** How an operand is read: in vectors ('v'), element by element ('e'), or one for all ('s'). */
type Access = 'v' | 'e' | 's'

interface Call {
  readonly count: number
  readonly views: readonly View[]
  readonly access: readonly Access[]
  /** The place of the call's first number among those of all calls. */
  readonly first: number
}

export const foreach = (engine: Engine): KernelOf<ElementwiseAttrs> => {
  const most = engine.gpu.limits.maxStorageBuffersPerShaderStage
  const known: (Lowered | null | undefined)[] = []
  const loweredOf = (expression: TypedProgram): Lowered | null => {
    let lowered = known[expression.id]
    if (lowered === undefined) {
      lowered = tryLower(expression)
      known[expression.id] = lowered
    }
    return lowered
  }

  const launch = (
    expression: TypedProgram,
    calls: readonly Call[],
    buffers: readonly GpuBuffer[],
    values: readonly number[],
  ): void => {
    const places = calls.map(({ views }) => views.map((v) => buffers.indexOf(bufferOf(v))))
    const access = calls.map((c) => c.access.join(''))
    const kernel = engine.kernel(`foreach:${expression.id}:${access}:${places}`, expression.name, () =>
      shader(expression, loweredOf(expression) as Lowered, calls, places),
    )
    let end = 0
    const each = calls.map(({ count, views, first }) => {
      end += Math.ceil(count / span)
      return { end, count, o: views, a: first }
    })
    engine.run(kernel, buffers, { calls: each }, grid(end), values)
  }

  return {
    dtypes: [['float32']],
    supports(views, { kernel }) {
      if (loweredOf(kernel) === null) return false
      const { shape } = views[0]
      let buffers = 0
      for (let i = 0; i < views.length; i++) {
        const v = views[i]
        let first = 0
        while (views[first].buffer !== v.buffer) first++
        if (first === i) buffers++
        const output = i < kernel.exprs.length
        // Neighbours in one vector must not be written by two threads.
        if (output && v.offset % 4 !== 0) return false
        if (layout.sameShape(v.shape, shape) && layout.isContiguous(v)) continue
        if (output || layout.numel(v.shape) !== 1) return false
      }
      return buffers <= most
    },
    run(outputs, inputs, { kernel: expression }, numbers) {
      const [outs, ins] = [expression.exprs.length, expression.inputs.length]
      let calls: Call[] = []
      let buffers: GpuBuffer[] = []
      for (let c = 0; c * outs < outputs.length; c++) {
        const first = c * expression.numbers
        const views = [...outputs.slice(c * outs, (c + 1) * outs), ...inputs.slice(c * ins, (c + 1) * ins)]
        const count = layout.numel(views[0].shape)
        if (count === 0) continue
        const access = views.map((v, i): Access => {
          if (i >= outs && layout.numel(v.shape) === 1) return 's'
          return v.offset % 4 === 0 ? 'v' : 'e'
        })
        const fresh = views.map(bufferOf)
        const joined = [...new Set([...buffers, ...fresh])]
        if (joined.length > most || calls.length === mostCalls) {
          launch(expression, calls, buffers, numbers)
          calls = []
          buffers = [...new Set(fresh)]
        } else buffers = joined
        calls.push({ count, views, access, first })
      }
      if (calls.length > 0) launch(expression, calls, buffers, numbers)
    },
  }
}

function tryLower(expression: TypedProgram): Lowered | null {
  const { exprs, inputs, params } = expression
  const floats = [...exprs.map((t) => t.dtype), ...inputs, ...params.map((p) => p.dtype)]
  if (floats.some((d) => d !== 'float32') || typedPostOrder(exprs).some((t) => t.kind === 'coord'))
    return null
  try {
    return lower(exprs, (node) =>
      node.kind === 'input' ? `x${node.index}` : node.kind === 'param' ? `a${node.slot}` : 'i32(i)',
    )
  } catch (error) {
    if (error instanceof UnsupportedOpError) return null
    throw error
  }
}

const params = (expression: TypedProgram, calls: number) => {
  const operands = [...expression.exprs, ...expression.inputs]
  const one = {
    ...{ end: u32, count: u32 },
    o: several(
      (name) => operands.map((_, i) => `${name}_${i}: u32`),
      (views: readonly View[]) => views.map((v) => v.offset),
    ),
    a: numbers(expression.params),
  }
  return block({ calls: list(Array.from({ length: calls }, () => one)) })
}

function shader(
  expression: TypedProgram,
  { code, values, functions }: Lowered,
  calls: readonly Call[],
  places: readonly (readonly number[])[],
): Shader<ValuesOf<typeof params>> {
  const outs = expression.exprs.length
  const written = new Set(places.flatMap((p) => p.slice(0, outs)))
  const count = Math.max(...places.flat()) + 1
  const args = [
    'i: u32',
    ...expression.inputs.map((_, k) => `x${k}: f32`),
    ...expression.params.map((_, s) => `a${s}: f32`),
  ]
  const branches = calls.map((call, c) => {
    const before = c === 0 ? '0u' : `p.end${c - 1}`
    return `if (number < p.end${c}) {
let first = ((number - ${before}) * ${workgroup}u + li) * 4u;
if (first >= p.count${c}) { return; }
${callCode(expression, call, places[c], c)}
return;
}`
  })
  return {
    params: params(expression, calls.length),
    bindings: Array.from(
      { length: count },
      (_, b): Binding => ({ name: `b${b}`, item: 'vec4<f32>', ...(written.has(b) && { write: true }) }),
    ),
    workgroup: [workgroup],
    declarations: `${mathCode(functions)}
struct Out { ${values.map((_, o) => `r${o}: f32`).join(', ')} }
fn f(${args.join(', ')}) -> Out {
${code}
return Out(${values.join(', ')});
}`,
    body: `let number = wg.x + wg.y * groups.x;
${branches.join('\n')}`,
  }
}

/** Four elements from `first` on of call `c`. */
function callCode(expression: TypedProgram, { access }: Call, place: readonly number[], c: number): string {
  const outs = expression.exprs.length
  const lines: string[] = []
  expression.inputs.forEach((_, k) => {
    const i = outs + k
    const [b, o] = [`b${place[i]}`, `p.o${c}_${i}`]
    if (access[i] === 's') lines.push(`let w${k} = vec4(${b}[${o} >> 2u][${o} & 3u]);`)
    else if (access[i] === 'v') lines.push(`let w${k} = ${b}[(${o} + first) >> 2u];`)
    else {
      // Not beyond the last element.
      const parts = [0, 1, 2, 3].map((j) => {
        lines.push(`let i${k}_${j} = ${o} + min(first + ${j}u, p.count${c} - 1u);`)
        return `${b}[i${k}_${j} >> 2u][i${k}_${j} & 3u]`
      })
      lines.push(`let w${k} = vec4(${parts.join(', ')});`)
    }
  })
  const params = expression.params.map((_, s) => `p.a${c}_${s}`)
  for (let j = 0; j < 4; j++) {
    const elements = expression.inputs.map((_, k) => `w${k}[${j}]`)
    lines.push(`let r${j} = f(${[`first + ${j}u`, ...elements, ...params].join(', ')});`)
  }
  const to = (o: number): string => `b${place[o]}[(p.o${c}_${o} + first) >> 2u]`
  const whole = Array.from(
    { length: outs },
    (_, o) => `${to(o)} = vec4(${[0, 1, 2, 3].map((j) => `r${j}.r${o}`).join(', ')});`,
  )
  // At the end of a tensor that is part of a buffer, what comes after it stays as it is.
  const parts = Array.from({ length: outs }, (_, o) =>
    [0, 1, 2].map((j) => `if (first + ${j}u < p.count${c}) { ${to(o)}[${j}] = r${j}.r${o}; }`).join('\n'),
  )
  lines.push(`if (first + 4u <= p.count${c}) {\n${whole.join('\n')}\n} else {\n${parts.join('\n')}\n}`)
  return lines.join('\n')
}
