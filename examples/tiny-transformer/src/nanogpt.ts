import { parseOptions } from './options.ts'
import { supervise } from './supervise.ts'

/**
 * nanoGPT's recipe for a laptop's CPU (Karpathy, github.com/karpathy/nanoGPT, its README) with a text of your own:
 *
 *     pnpm nanogpt --data FILE [options]
 *
 * 4 layers, 4 heads, width 128, blocks of 64, 12 of them a step, 2000 steps. On tiny-shakespeare its README quotes a
 * validation loss of 1.88.
 */
await supervise('nanogpt', 'recipe', () =>
  parseOptions(
    {
      name: 'nanogpt',
      typed: 'pnpm nanogpt',
      description: 'Trains by nanoGPT’s recipe for a laptop’s CPU on a text of your own.',
      // Its other sizes and rates are those of `npm start`.
      defaults: { steps: 2000, lr: 1e-3, out: 'out/nanogpt' },
      hasText: false,
      samples: false,
    },
    process.argv.slice(2),
  ),
)
