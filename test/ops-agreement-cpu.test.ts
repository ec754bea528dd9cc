import { createCpuBackend } from '@tilegrad/backend-cpu'
import { afterAll } from 'vitest'
import { testAgreement } from './agreement.ts'

const cpu = createCpuBackend()
afterAll(() => cpu.close())

testAgreement('cpu', cpu)
