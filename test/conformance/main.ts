// Compares tilegrad with what PyTorch computed: pnpm conformance --fixtures DIR [--backend NAME] [--only REGEX]
import { main } from './cli.ts'

process.exitCode = await main(process.argv.slice(2), console.log)
