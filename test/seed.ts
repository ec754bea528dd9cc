import { beforeEach } from 'vitest'
import { manualSeed } from '../packages/core/src/random.ts'

// What a test draws is the same in every run, and whatever ran before it: a failure comes back when its test runs alone.
beforeEach(() => manualSeed(20_261_130))
