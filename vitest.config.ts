import { fileURLToPath } from 'node:url'
import { defineConfig } from 'vitest/config'

const source = (path: string) => fileURLToPath(new URL(`packages/${path}`, import.meta.url))

const [major = 0] = process.versions.node.split('.').map(Number)

export default defineConfig({
  resolve: {
    // Tests run on the sources, so that they need no build.
    alias: [
      { find: /^@tilegrad\/core\/formula$/, replacement: source('core/src/formula.ts') },
      { find: /^@tilegrad\/([\w-]+)$/, replacement: source('$1/src/index.ts') },
      { find: /^tilegrad\/workers$/, replacement: source('tilegrad/src/workers.ts') },
      { find: /^tilegrad$/, replacement: source('tilegrad/src/index.ts') },
    ],
  },
  test: {
    include: ['packages/*/test/**/*.test.ts', 'examples/*/test/**/*.test.ts', '{test,docs}/**/*.test.ts'],
    globalSetup: 'test/adapter-setup.ts',
    pool: 'forks',
    // The CPU backend starts threads of its own in each test file.
    maxWorkers: 2,
    // From Node 24 on V8's optimising compiler pairs instructions: without these flags, the small inputs of tests would
    // only see what the other one makes.
    execArgv: major >= 24 ? ['--wasm-sync-tier-up', '--wasm-tiering-budget=1'] : [],
    testTimeout: 240_000,
  },
})
