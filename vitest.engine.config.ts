import { defineConfig } from 'vitest/config'
import { shared } from './vitest.config.ts'

// What runs on a second Node as well (scripts/nodes.mjs): the tests of the CPU engine, whose machine code V8 makes. In
// files that test GPUs too their list of GPUs is empty then.
export default defineConfig({
  ...shared,
  test: {
    ...shared.test,
    include: [
      'packages/backend-cpu/test/**/*.test.ts',
      'test/conformance/cpu.test.ts',
      'test/{compile,decoding,fused-backward,gated-linear-attention,ops-agreement-cpu,optimizers,training}.test.ts',
    ],
    env: { TILEGRAD_TESTS: 'cpu' },
  },
})
