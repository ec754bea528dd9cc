// Hostile inputs and faults, in one command: pnpm hostile [--quick] [--seed N] [--only NAME]
// Exit code 1 if anything fails, with the seed and the input that show it again.
import { parseArgs } from 'node:util'
import { createCpuBackend, setDefaultBackend } from 'tilegrad'
import { configs } from './configs.ts'
import { disk } from './disk.ts'
import { formulas } from './formulas.ts'
import { interruptions } from './interruptions.ts'
import { outOfMemory } from './memory.ts'
import { runPart } from './part.ts'
import { safetensors } from './safetensors.ts'
import { states } from './states.ts'
import { texts } from './texts.ts'
import { startWatchdog } from './watchdog.ts'

const { values } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    seed: { type: 'string', default: String(Date.now() % 2 ** 31) },
    only: { type: 'string', default: '' },
  },
})
const seed = Number(values.seed)
const parts = [safetensors, configs, formulas, states, outOfMemory, disk, texts, interruptions].filter(
  ({ name }) => name.includes(values.only),
)
if (!Number.isSafeInteger(seed) || parts.length === 0) {
  console.error('usage: pnpm hostile [--quick] [--seed N] [--only NAME]')
  process.exit(2)
}

setDefaultBackend(createCpuBackend({ threads: 1 }))
const watchdog = startWatchdog()
console.log(`seed ${seed}`)
console.log(
  `${'part'.padEnd(16)}${['tried', 'survived', 'refused', 'failed', 'seconds'].map((t) => t.padStart(10)).join('')}`,
)
let failed = 0
for (const part of parts) {
  const start = performance.now()
  const counts = await runPart(part, { seed, count: part.inputs[values.quick ? 1 : 0], watchdog })
  const seconds = ((performance.now() - start) / 1000).toFixed(1)
  const figures = [counts.tried, counts.survived, counts.refused, counts.failures.length, seconds]
  console.log(`${part.name.padEnd(16)}${figures.map((f) => String(f).padStart(10)).join('')}  ${part.about}`)
  for (const what of counts.skipped) console.log(`  NOT POSSIBLE HERE  ${what}`)
  for (const what of counts.failures.slice(0, 10)) console.log(`  FAILED  ${what}`)
  if (counts.failures.length > 10) console.log(`  FAILED  ${counts.failures.length - 10} more`)
  failed += counts.failures.length
}
if (failed > 0)
  console.log(`${failed} failed; again with: pnpm hostile ${values.quick ? '--quick ' : ''}--seed ${seed}`)
process.exitCode = failed > 0 ? 1 : 0
