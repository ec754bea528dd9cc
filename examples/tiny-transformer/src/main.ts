import { parseOptions } from './options.ts'
import { supervise } from './supervise.ts'

/** `npm start`: trains a small GPT on a text, and shows what it learned. */
await supervise('tiny-transformer', 'tour', () =>
  parseOptions(
    {
      name: 'tiny-transformer',
      typed: 'npm start --',
      description: 'Trains a small character-level GPT on a text and shows what it learned.',
      // About two minutes on two cores.
      defaults: { steps: 1600, lr: 2e-3, out: 'out' },
      hasText: true,
      samples: true,
    },
    process.argv.slice(2),
  ),
)
