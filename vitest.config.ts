import { fileURLToPath } from 'node:url'
import { defineConfig, type ViteUserConfig } from 'vitest/config'
import { LongestFirst } from './test/longest-first.ts'

const source = (path: string) => fileURLToPath(new URL(`packages/${path}`, import.meta.url))

const [major = 0] = process.versions.node.split('.').map(Number)
const current = major >= 24

/** For the tests of everything, and of the engine on a second Node (vitest.engine.config.ts). */
export const shared = {
  resolve: {
    // Tests run on the sources, so that they need no build.
    alias: [
      { find: /^@tilegrad\/core\/(formula|kernel|operands)$/, replacement: source('core/src/$1.ts') },
      { find: /^@tilegrad\/core\/methods$/, replacement: source('core/src/all-methods.ts') },
      { find: /^@tilegrad\/([\w-]+)$/, replacement: source('$1/src/index.ts') },
      { find: /^tilegrad\/data$/, replacement: source('tilegrad/src/data.ts') },
      { find: /^tilegrad\/matchers$/, replacement: source('tilegrad/src/matchers.ts') },
      { find: /^tilegrad\/methods$/, replacement: source('tilegrad/src/methods.ts') },
      { find: /^tilegrad\/workers$/, replacement: source('tilegrad/src/workers.ts') },
      { find: /^tilegrad$/, replacement: source('tilegrad/src/index.ts') },
    ],
  },
  test: {
    pool: 'forks',
    setupFiles: 'test/seed.ts',
    // The CPU backend starts threads of its own in each test file.
    maxWorkers: 2,
    sequence: { sequencer: LongestFirst },
    // From Node 24 on V8's optimising compiler pairs instructions: without these flags, the small inputs of tests would
    // only see what the other one makes.
    execArgv: current ? ['--wasm-sync-tier-up', '--wasm-tiering-budget=1'] : [],
    // What older ones, or processors other than x64, do not have. The second Node has it, or `npm test` says so.
    exclude: [
      '**/node_modules/**',
      ...(current ? [] : ['**/*.node24.test.ts']),
      ...(current && process.arch === 'x64' ? [] : ['**/*.256-bit.test.ts']),
    ],
    // Only to end what hangs: a machine may be busy with other things.
    testTimeout: 600_000,
    hookTimeout: 600_000,
    teardownTimeout: 60_000,
  },
} satisfies ViteUserConfig

export default defineConfig({
  ...shared,
  test: {
    ...shared.test,
    include: ['packages/*/test/**/*.test.ts', 'examples/*/test/**/*.test.ts', '{test,docs}/**/*.test.ts'],
    globalSetup: 'test/adapter-setup.ts',
  },
})
