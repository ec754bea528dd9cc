/** Joined tensors against the copies on the reference backend: nothing is computed, all bits agree. */

import { cat, type DType, type Tensor } from '@tilegrad/core'
import { expect, test } from 'vitest'
import { check } from '../../../test/kernels/fused.ts'
import { dense, rows } from '../../../test/kernels/operand.ts'
import { integer, pick, random } from '../../../test/kernels/random.ts'
import { createWebGpuBackend } from '../src/index.ts'
import { engine } from './support/engine.ts'

const exact = [[0, 0]] as const

test('any number of tensors of any strides, along any dim', async () => {
  const rnd = random(1)
  for (let round = 0; round < 40; round++) {
    const shape = Array.from({ length: integer(rnd, 1, 4) }, () => pick(rnd, [1, 2, 3, 4, 8]))
    const dim = integer(rnd, 0, shape.length - 1)
    const dtype = pick<DType>(rnd, ['float32', 'float32', 'int32', 'bool'])
    // More than can be bound at once, too; and empty ones.
    const inputs = Array.from({ length: pick(rnd, [1, 2, 3, 9, 20]) }, () =>
      rows(
        rnd,
        shape.map((n, d) => (d === dim ? integer(rnd, 0, 8) : n)),
        [],
        (i) => (dtype === 'bool' ? i % 2 : i),
        dtype,
      ),
    )
    const needs = inputs.map(() => false)
    const call = (xs: readonly Tensor[]) => cat(xs, dim)
    await check(engine, { inputs, needs, dout: null, call }, ['cat'], exact)
  }
})

test('gradients of parts, put together: rows in vectors, more than a workgroup', async () => {
  const rnd = random(2)
  const heads = () => rows(rnd, [3, 40, 2], [8], () => rnd())
  const c = {
    inputs: [heads(), heads(), heads()],
    needs: [true, true, true],
    dout: dense([3, 40, 6, 8], (i) => i),
    call: (xs: readonly Tensor[]) => cat(xs, 2),
  }
  await check(engine, c, ['cat'], exact)
})

test('three tensors are one launch', async () => {
  const gpu = await createWebGpuBackend({ backend: 'null' })
  const { counts } = gpu.engine
  const parts = [1, 2, 3]
    .map((n) => gpu.alloc(4 * 5 * n, 'float32'))
    .map((buffer, i) => ({
      buffer,
      dtype: 'float32' as const,
      shape: [5, i + 1],
      strides: [i + 1, 1],
      offset: 0,
    }))
  const out = {
    ...(parts[0] as (typeof parts)[0]),
    buffer: gpu.alloc(120, 'float32'),
    shape: [5, 6],
    strides: [6, 1],
  }
  gpu.kernels.cat?.run([out], parts, { dim: 1 }, [])
  expect(counts.dispatches).toBe(1)
  gpu.close()
})
