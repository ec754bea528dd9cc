/** float16 and bfloat16 on GPUs: two to a word, with or without the feature shader-f16. */

import { expect, test } from 'vitest'
import { testHalf } from '../../../test/kernels/half.cases.ts'
import { createWebGpuBackend } from '../src/index.ts'
import { mathCode, withOwnHalves } from '../src/wgsl/math.ts'
import { engine } from './support/engine.ts'

testHalf(engine, false)

test("the GPU's own conversions compile, and take the place of ours", async () => {
  const gpu = await createWebGpuBackend({ backend: 'null' })
  const ours = mathCode(['tg_load_f16', 'tg_store_f16'])
  const code = withOwnHalves(`${ours}
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@compute @workgroup_size(1) fn main() { x[0] = tg_store_f16(tg_load_f16(x[1])); }`)
  expect(code).not.toContain('tg_round_f16')
  expect(code).not.toContain('unpack2x16float')
  const { messages } = await gpu.gpu.device.createShaderModule({ code }).getCompilationInfo()
  expect(messages).toEqual([])
  gpu.close()
})
