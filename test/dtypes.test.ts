/**
 * docs/dtypes.md says which way an operator goes for each dtype on each engine. Here they are called, and asked through
 * profiles. The GPU is Dawn's null device, which computes nothing.
 */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import {
  applyProgramIntoEach,
  type Backend,
  cat,
  createCpuBackend,
  createWebGpuBackend,
  crossEntropy,
  cumsum,
  type DType,
  DTypeError,
  dtypeInfo,
  embedding,
  expr,
  gatedLinearAttention,
  gather,
  layerNorm,
  linear,
  linearAttention,
  logSoftmax,
  profile,
  program,
  rmsNorm,
  rotaryEmbedding,
  scaledDotProductAttention,
  scatterAdd,
  scope,
  softmax,
  sort,
  type Tensor,
  tensor,
  totalNorm,
} from 'tilegrad'
import { afterAll, expect, test } from 'vitest'

const engines = {
  CPU: createCpuBackend({ threads: 1 }),
  WebGPU: await createWebGpuBackend({ backend: 'null' }),
} as const
afterAll(async () => {
  await engines.CPU.close()
  engines.WebGPU.close()
})

const TWICE = program('twice', 1, ([x]) => expr.add(x, x))
const of = (x: Tensor, shape: readonly number[], dtype: DType = x.dtype): Tensor =>
  tensor(new Array(shape.reduce((a, b) => a * b, 1)).fill(1), shape, { dtype, device: x.backend })

/** One operator for each kernel, on a tensor [4, 4]. */
const samples: Readonly<Record<string, (x: Tensor) => unknown>> = {
  'add, exp, where … (elementwise)': (x) => x.add(x),
  'sum, mean, amax …': (x) => x.sum(1),
  'argmax, argmin': (x) => x.argmax(1),
  'cumsum, cumprod': (x) => cumsum(x, 1),
  'sort, topk': (x) => sort(x, 1),
  matmul: (x) => x.matmul(x),
  'gather, indexSelect': (x) => gather(x, 1, of(x, [4, 1], 'int32')),
  scatterAdd: (x) => scatterAdd(x, 1, of(x, [4, 1], 'int32'), of(x, [4, 1])),
  cat: (x) => cat([x, x]),
  'optimisers (applyProgramIntoEach)': (x) => {
    const calls = [x, of(x, [4])].map((t) => ({ outputs: [t], inputs: [t] }))
    applyProgramIntoEach(TWICE, calls)
  },
  embedding: (x) => embedding(of(x, [3], 'int32'), x),
  linear: (x) => linear(x, x, of(x, [4])),
  softmax: (x) => softmax(x, -1),
  logSoftmax: (x) => logSoftmax(x, -1),
  layerNorm: (x) => layerNorm(x, [4]),
  rmsNorm: (x) => rmsNorm(x, [4]),
  crossEntropy: (x) => crossEntropy(x, of(x, [4], 'int32')),
  scaledDotProductAttention: (x) => {
    const q = x.reshape([1, 1, 4, 4])
    return scaledDotProductAttention(q, q, q)
  },
  linearAttention: (x) => {
    const q = x.reshape([1, 1, 4, 4])
    return linearAttention(q, q, q)
  },
  gatedLinearAttention: (x) => {
    const q = x.reshape([1, 1, 4, 4])
    return gatedLinearAttention(q, q, q, null)
  },
  rotaryEmbedding: (x) => rotaryEmbedding(x.reshape([1, 4, 4])),
  totalNorm: (x) => totalNorm([x]),
}

/** The way that a sample goes. */
function wayOf(backend: Backend, dtype: DType, sample: (x: Tensor) => unknown): string {
  try {
    return scope(() => {
      const x = tensor(new Array(16).fill(1), [4, 4], { dtype, device: backend })
      const paths = profile(() => {
        sample(x)
      }).rows.map(({ path }) => path)
      if (paths.includes('javascript')) return 'slow'
      return paths.includes('composed') && !paths.includes('fused') ? 'parts' : 'kernel'
    })
  } catch (error) {
    if (error instanceof DTypeError) return '–'
    throw error
  }
}

/** The dtypes that an engine stores. */
const stored = (backend: Backend): DType[] =>
  (Object.keys(dtypeInfo) as DType[]).filter((dtype) => wayOf(backend, dtype, () => {}) !== '–').reverse()

test('GPUs refuse what they do not store, and say what to do', () => {
  expect(() => tensor([1], { dtype: 'float64', device: engines.WebGPU })).toThrow(
    "webgpu: float64 is not stored on GPUs here; convert with .to('float32') before moving there",
  )
})

function table(): string {
  const columns = Object.entries(engines).flatMap(([name, backend]) =>
    stored(backend).map((dtype, i) => ({ title: i === 0 ? `${name}: ${dtype}` : dtype, backend, dtype })),
  )
  const lines = [
    ['operator', ...columns.map(({ title }) => title)],
    columns.map(() => '---').concat('---'),
    ...Object.entries(samples).map(([name, sample]) => [
      name,
      ...columns.map(({ backend, dtype }) => wayOf(backend, dtype, sample)),
    ]),
  ]
  return lines.map((cells) => `| ${cells.join(' | ')} |`).join('\n')
}

test('the table of docs/dtypes.md tells what happens', () => {
  const page = readFileSync(fileURLToPath(new URL('../docs/dtypes.md', import.meta.url)), 'utf8')
  expect(page.match(/^\|[\s\S]*?\|$(?!\n\|)/m)?.[0]).toBe(table())
})
